"""Which module may import which: read from the source, without importing anything."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "metaopt"
CORE = {"core", "tree", "random", "inner_optimizers"}
PARTS = {"models", "data", "llm"}

ALLOWED = {
    **dict.fromkeys(CORE, CORE),
    "budget": set(),
    "distributed": {"core"},
    "inner": CORE | {"distributed"},
    "estimators": CORE | {"inner", "distributed", "estimators"},
    "optimizers": CORE | {"inner", "optimizers"},
    **{part: {part} for part in PARTS},
    "resampling": CORE,
    "binary_metrics": CORE | {"resampling"},
    "calibration": CORE | {"binary_metrics", "resampling"},
    "best_of_n": CORE | {"resampling"},
    "problems": CORE | {"inner", "problems", "figures", "calibration", "best_of_n"} | PARTS,
    "engine": CORE | {"distributed", "budget"},
    "checkpoint": CORE,
    "tracking": CORE,
}
"""What each part may import of metaopt; parts that are not listed may import all but `cli`."""

OWNERS = {"hydra": "cli", "omegaconf": "cli", "wandb": "tracking"}
SMALL = {"core", "tree", "random", "inner_optimizers", "budget", "distributed", "inner", "engine"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found |= {base if base != "metaopt" else f"metaopt.{a.name}" for a in node.names}
            assert node.level == 0, f"{path} has a relative import"
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("metaopt.")}


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_what_its_layer_may(path: Path) -> None:
    part = part_of(path)
    found = own(imports(path))
    if part in ALLOWED:
        assert found <= ALLOWED[part], f"{part} may not import {sorted(found - ALLOWED[part])}"
    assert part == "cli" or "cli" not in found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_hydra_and_wandb_are_imported_in_one_file_each(path: Path) -> None:
    for name in imports(path):
        owner = OWNERS.get(name.split(".")[0])
        assert owner in (None, part_of(path)), f"{name} belongs to {owner}"


@pytest.mark.parametrize("part", sorted(SMALL))
def test_the_core_needs_torch_and_the_standard_library_only(part: str) -> None:
    import sys

    names = {name.split(".")[0] for name in imports(ROOT / f"{part}.py")} - {"metaopt"}
    assert names <= {"torch", *sys.stdlib_module_names}


def test_files_stay_readable() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) < 500
