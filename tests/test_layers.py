"""Which module may import which: read from the source, without importing anything."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "metaopt"
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
SHARED = {"text"}
"""Packages of problems that families share, and no family."""
FAMILIES = sorted({path.parent.name for path in ROOT.glob("problems/*/__init__.py")} - SHARED)

FAMILY = {
    "engine", "environments", "files", "nn", "data", "llm", "metrics", "report.figures",
    "report.judge_report", "report.page", "report.table",
    *(f"problems.{package}" for package in SHARED),
}  # fmt: skip
ALLOWED = {
    "files": {"engine.tree"},
    "engine": set(),
    "estimators": {"engine", "files"},  # a reverse pass may keep states on disk
    "optimizers": {"engine"},
    "nn": {"engine.tree", "engine.random", "engine.functional", "files"},
    "environments": {"engine.tree", "engine.random", "engine.ranges", "nn"},
    "metrics": {"engine.tree", "engine.random", "files"},
    **{part: {"engine.tree", "engine.random", "files"} for part in ("data", "llm")},
    "runs": {"engine", "files", "report.figures"},
    "report": {
        "engine",
        "files",
        "runs.checks",
        "runs.configs",
        "runs.contents",
        "runs.continuing",
        "runs.directions",
        "runs.folder",
        "runs.provenance",
        "runs.stopping",
    },
    **{f"problems.{package}": {"engine", "llm"} for package in SHARED},
    **{f"problems.{family}": FAMILY for family in FAMILIES},
    "problems.rollout_length.policies": FAMILY | {"optimizers", "problems.rollout_length"},
}
"""What each part may import of metaopt except itself; parts that are not listed: all but `cli`."""

EXCEPTIONS = {
    "problems.reward_model.pair_weights": {"problems.domain_reweighting"},
    "problems.rollout_length.schedules": {"report.collect"},
    "report.judge_figures": {"metrics", "llm.rubric"},
    "report.judge_report": {"metrics"},
    "llm.transformers_lm": {"nn.adapters", "data.folder"},
    "llm.decoding": {"nn.precision", "nn.pretrained"},
    "nn.encoder": {"data.folder", "engine.ranges"},
    "nn.transformers_model": {
        "data.folder",
        "data.origin",
        "engine.gradient_problem",
        "engine.protocols",
        "engine.ranges",
        "engine.remat_blocks",
    },
    "data.fetch_model": {"nn.pretrained"},
    "data.origin": {"nn.model_card"},
    "runs.errors": {"llm.errors"},
    "runs.python": {"cli"},  # within functions: a run of the command is made as the command does
}
"""What single modules may import in addition to that."""

OWNERS = {"hydra": "cli", "omegaconf": "cli", "wandb": "runs.tracking"}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, and the names with their modules."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(name: str, parts: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_what_its_layer_may(path: Path) -> None:
    name = module(path)
    modules = {x.removeprefix("metaopt.") for x in imports(path) if x.startswith("metaopt.")}
    part = max((part for part in ALLOWED if within(name, {part})), key=len, default=None)
    if part is not None:
        allowed = ALLOWED[part] | EXCEPTIONS.get(name, set()) | {part}
        strangers = sorted(x for x in modules if not within(x, allowed))
        assert not strangers, f"{name} may not import {strangers}"
    assert within(name, {"cli", "__main__", "runs.python"}) or not any(
        within(x, {"cli"}) for x in modules
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_hydra_and_wandb_are_imported_in_one_place_each(path: Path) -> None:
    for name in imports(path):
        owner = OWNERS.get(name.split(".")[0])
        assert owner is None or within(module(path), {owner}), f"{name} belongs to {owner}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("engine/*.py")), ids=lambda p: p.stem)
def test_the_engine_needs_torch_and_the_standard_library_only(path: Path) -> None:
    names = {name.split(".")[0] for name in imports(path)} - {"metaopt"}
    assert names <= {"torch", *sys.stdlib_module_names}


def test_every_problem_is_in_a_family() -> None:
    assert [path.name for path in ROOT.glob("problems/*.py")] == ["__init__.py"]


def test_files_stay_readable() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) < 500


def test_the_root_holds_folders_and_the_front_door() -> None:
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
