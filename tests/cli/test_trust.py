"""A run's folder from elsewhere runs only what the user has named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import metaopt as package
from metaopt import ConfigError, Descent, Unroll
from metaopt.cli import folders
from metaopt.files.tensors import read_tensors, write_tensors
from metaopt.problems.examples import Ridge
from metaopt.runs.configs import as_json, config_hash
from metaopt.runs.provenance import resume_command

Metaopt = Callable[..., Any]
RUN = ("problem=ridge", "debug=tiny", "figures=false", "hydra.run.dir=run")
LAB = """
import os
from pathlib import Path

from metaopt.problems.examples import Ridge

class Mine(Ridge):
    pass

def touch(path="touched", **_):
    Path(path).write_text("ran")

touch("imported")
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    yield
    folders.use([])
    for name in [name for name in sys.modules if name.split(".")[0] in ("lab", "run", "spread")]:
        sys.modules.pop(name)


def plant(place: str, node: Any, folder: str = "run", finished: bool = False) -> None:
    """Put a node into a run's folder as its author would: into all that it says of its config."""
    path = Path(folder, "config.yaml")
    config = yaml.safe_load(path.read_text())
    *keys, last = place.split(".")
    inside = config
    for key in keys:
        inside = inside[key]
    inside[last] = node
    path.write_text(yaml.safe_dump(config))
    record = json.loads(Path(folder, "provenance.json").read_text())
    Path(folder, "provenance.json").write_text(json.dumps({**record, "config": as_json(config)}))
    Path(folder, "SHA256SUMS").unlink(missing_ok=True)
    if finished:
        result = json.loads(Path(folder, "result.json").read_text())
        result["config_hash"] = config_hash(config)
        Path(folder, "result.json").write_text(json.dumps(result))
        final = read_tensors(Path(folder, "final.pt"))
        write_tensors(Path(folder, "final.pt"), {**final, "config_hash": result["config_hash"]})
    else:
        Path(folder, "result.json").unlink(missing_ok=True)
        shutil.rmtree(Path(folder, "checkpoints"), ignore_errors=True)


def content() -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}


CALL = {"_target_": "lab.touch"}
STRANGE = {
    "a function": ("problem", "_target_", {"_target_": "os.system", "command": "touch touched"}),
    "a part": ("problem.inner_optimizer", "_target_", {**CALL, "lr": 0.1}),
    "a partial": ("optimizer.clip_norm", "_target_", {**CALL, "_partial_": True}),
    "a list": ("tracker", "[1][0]._target_", [1, [CALL]]),
    "an argument": ("problem.noise", "_args_[0]._target_", {
        "_target_": "torch.optim.SGD", "_args_": [CALL],
    }),
    "no recursion": ("limits", "deep._target_", {"_recursive_": False, "deep": CALL}),
    "a walk": ("problem.noise", "_target_", {"_target_": "metaopt.cli.schema.pydoc.locate"}),
    "a walk of torch": ("problem.noise", "_target_", {
        "_target_": "torch.optim.optimizer.torch.save", "obj": 1, "f": "touched",
    }),
    "no optimizer": ("problem.noise", "_target_", {
        "_target_": "torch.optim.swa_utils.AveragedModel", "model": None,
    }),
    "a file": ("problem.noise", "_target_", {
        "_target_": "metaopt.files.writing.write_text", "path": "touched", "text": "ran",
    }),
    "a method": ("problem.noise", "path", {
        "_target_": "hydra.utils.get_method", "path": "os.system",
    }),
    "an object": ("problem.noise", "_args_", {
        "_target_": "hydra.utils.get_object", "_args_": ["lab.touch"],
    }),
    "a name that is made": ("problem.noise", "path", {
        "_target_": "hydra.utils.get_class", "path": {"_target_": "metaopt.optimizers.recorded"},
    }),
    "instantiate": ("problem.noise", "_target_", {"_target_": "hydra.utils.instantiate"}),
    "a private name": ("problem.noise", "_target_", {
        "_target_": "metaopt.problems.examples.Ridge.__init__.__globals__.get",
    }),
    "no text": ("problem.noise", "_target_", {"_target_": ["lab.touch"]}),
    "a variable": ("problem.noise", "", "${oc.env:HOME}"),
    "a target of a variable": ("problem.noise", "_target_", {"_target_": "${oc.env:HOME}"}),
    "a variable in a text": ("problem.noise", "y", {"_text_": "1", "y": "${oc.env:HOME}"}),
    "a variable in a class": ("problem.noise", "y", {
        "_class_": "metaopt.problems.examples.Ridge", "y": "${oc.env:HOME}",
    }),
    "a method of the problem": ("optimizer.clip_norm", "_method_", {"_method_": "__reduce__"}),
    "a server": ("problem.noise", "base_url", {
        "_target_": "metaopt.llm.openai_compatible.OpenAICompatibleLM", "model": "m",
        "base_url": "https://example.org/v1", "hosts": ["example.org"], "key_variable": "HOME",
    }),
    "a server without its key": ("problem.noise", "_args_", {
        "_target_": "metaopt.llm.openai_compatible.OpenAICompatibleLM",
        "_args_": ["m", "https://example.org/v1"], "hosts": ["example.org"],
    }),
}  # fmt: skip


@pytest.fixture
def run(metaopt: Metaopt, tmp_path: Path) -> Path:
    """An unfinished run, and a module `lab` on the import path."""
    metaopt(*RUN)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lab.py").write_text(LAB)
    sys.path.insert(0, str(tmp_path / "elsewhere"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("place", "key", "node"),
    [
        pytest.param(*case, id=name, marks=() if i % 3 == 0 else pytest.mark.slow)
        for i, (name, case) in enumerate(STRANGE.items())
    ],
)
def test_what_a_folder_may_not_name_is_listed_and_not_run(
    metaopt: Metaopt, run: Path, place: str, key: str, node: Any
) -> None:
    plant(place, node)
    before = content()
    done = metaopt("resume=run")
    assert done.code == 1
    assert "The config of run names what is run only where you say so:" in done.err
    joint = "" if key.startswith("[") or not key else "."
    assert f"\n  {place}{joint}{key}: " in done.err
    assert "Traceback" not in done.err
    assert content() == before
    for name in ("touched", "imported"):
        assert not Path(name).exists()
    with pytest.raises(ConfigError, match="names what is run only where you say so"):
        package.resume("run", progress=False)


def test_reading_a_folder_runs_nothing(metaopt: Metaopt, run: Path) -> None:
    plant("problem", CALL, finished=True)
    for command in (("ls", "."), ("show", "run"), ("report", "run"), ("resume=run",)):
        assert metaopt(*command).code == 0
    with pytest.raises(ConfigError, match=r"problem\._target_: lab\.touch \(not below metaopt"):
        package.load("run").problem  # noqa: B018
    assert not Path("imported").exists()


def test_a_package_that_is_named_is_run(metaopt: Metaopt, run: Path) -> None:
    plant("problem._target_", "lab.Mine")
    assert "lab.Mine (not below metaopt or torch.optim)" in metaopt("resume=run").err
    done = metaopt("resume=run", "trust=[lab,other]")
    assert done.code == 0, done.err
    assert "`metaopt resume=run 'trust=[lab]'`" in Path("run/README.md").read_text()
    assert "trust" not in metaopt("show", "run").out
    with pytest.raises(ConfigError, match=r"lab\.Mine"):
        package.load("run").problem  # noqa: B018
    assert type(package.load("run", trust=["lab"]).problem).__name__ == "Mine"
    with pytest.raises(TypeError, match="trust to be a list of which each is a text; got 'lab'"):
        package.load("run", trust="lab").problem  # noqa: B018
    plant("problem.noise", {"_target_": "lab.os.system"})
    assert "problem.noise._target_: lab.os.system (it is " in metaopt("resume=run", "trust=lab").err


def test_a_module_next_to_the_config_folder_given_now_is_run(
    metaopt: Metaopt, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "conf").mkdir()
    plant("problem._target_", "lab.Mine")
    done = metaopt("--config-dir", "elsewhere/conf", "resume=run")
    assert done.code == 0, done.err
    assert metaopt("resume=run", "outer_steps=5").code == 1


@pytest.mark.parametrize("name", ["run.lab.Mine", "spread.lab.Mine"])
def test_a_module_in_a_folder_of_runs_is_not_of_the_user(
    metaopt: Metaopt, run: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "spread").mkdir()
    (tmp_path / "run" / "__init__.py").write_text("")
    for folder in ("run", "spread"):
        (tmp_path / folder / "lab.py").write_text(LAB)
    plant("problem._target_", name)
    done = metaopt("--config-dir", "conf", "resume=run")
    assert (done.code, f"{name} (not below" in done.err) == (1, True)
    assert not Path("imported").exists()


def test_no_command_names_a_config_folder_that_came_with_the_run(run: Path, tmp_path: Path) -> None:
    """Else a command to copy would run the modules next to that folder."""
    (tmp_path / "archive" / "conf").mkdir(parents=True)
    shutil.move(run, tmp_path / "archive" / "run")
    path = tmp_path / "archive" / "run" / "provenance.json"
    record = json.loads(path.read_text())
    (path.parent / "SHA256SUMS").unlink()
    for places, named in ((["archive/conf"], False), (["conf"], True)):
        path.write_text(json.dumps({**record, "config_dirs": places}))
        assert ("--config-dir" in resume_command(Path("archive/run"))) is named


FROM_PYTHON = {
    "problem": lambda: package.load("python").problem,
    "optimizer": lambda: package.resume("python", Ridge(), outer_steps=3, progress=False),
}


@pytest.mark.parametrize("name", FROM_PYTHON)
def test_what_a_run_from_python_names_is_not_run(run: Path, name: str) -> None:
    parts = Unroll(inner_steps=2), Descent("adam", lr=0.1)
    package.run(Ridge(), *parts, 2, folder="python", progress=False, figures=False)
    plant(name, {"_class_": "lab:touch"}, "python", finished=True)
    with pytest.raises(ConfigError, match=rf"{name}\._class_: lab:touch \(not below metaopt"):
        FROM_PYTHON[name]()
    assert not Path("imported").exists()
