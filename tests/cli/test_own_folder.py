"""A project of your own: YAML in a config folder, and the Python next to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import folders
from metaopt.runs.python import resume

Metaopt = Callable[..., Any]
TINY = ("debug=tiny", "figures=false")
PYTHON = """
from metaopt.problems.examples import Ridge

class Mine(Ridge):
    pass
"""


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    yield
    folders.use([])
    for name in ("mine_alone", "elsewhere"):
        sys.modules.pop(name, None)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A config folder with a problem, an experiment, and the module `mine_alone` next to it."""
    shipped = (folders.shipped() / "problem" / "ridge.yaml").read_text()
    mine = shipped.replace("name: ridge", "name: mine").replace(
        "metaopt.problems.examples.Ridge", "mine_alone.Mine"
    )
    table = (folders.shipped() / "experiment" / "ridge" / "estimators.yaml").read_text()
    table = table.replace("problem: ridge", "problem: mine").replace("name: ridge/", "name: mine/")
    for name, text in {"problem/mine": mine, "experiment/mine": table}.items():
        path = tmp_path / "lab" / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "lab" / "mine_alone.py").write_text(PYTHON)
    return tmp_path / "lab" / "conf"


def test_your_own_problem_is_found_with_its_python(metaopt: Metaopt, conf: Path) -> None:
    for place in (["--config-dir", str(conf)], [f"--config-dir={conf}"], ["-cd", str(conf)]):
        done = metaopt(*place, "problem=mine", *TINY)
        assert done.code == 0, done.err
    assert len(list(Path().glob("runs/mine/*/result.json"))) == 3
    assert "mine" in metaopt("--config-dir", str(conf), "--help", "problem").out


def test_the_environment_names_the_folder_too(
    metaopt: Metaopt, conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_CONFIG_DIR", str(conf))
    assert metaopt("problem=mine", *TINY).code == 0


@pytest.mark.slow
def test_an_experiment_and_a_run_to_resume_are_found(metaopt: Metaopt, conf: Path) -> None:
    done = metaopt("--config-dir", str(conf), "experiment=mine", "seed=0", *TINY)
    assert (done.code, "4 cells: 4 computed" in done.out) == (0, True), done.err
    assert metaopt("-cd", str(conf), "problem=mine", *TINY, "hydra.run.dir=run").code == 0
    (Path("run") / "result.json").unlink()
    assert metaopt("-cd", str(conf), "resume=run").code == 0


def test_the_command_that_continues_a_run_names_the_config_folder(
    metaopt: Metaopt, conf: Path
) -> None:
    place = os.path.relpath(conf)
    arguments = ("problem=mine", *TINY, "checkpoint_every=2", "hydra.run.dir=run")
    assert metaopt("-cd", place, *arguments).code == 0
    command = f"metaopt --config-dir {place} resume=run"
    resume("run", outer_steps=4, progress=False)  # from Python, which has no such flag
    assert f"`{command}`" in Path("run/README.md").read_text()
    for name in ("result.json", "checkpoints/step_00000004.pt"):
        Path("run", name).unlink()
    assert "killed\t3\t4" in metaopt("ls", ".").out
    assert command in metaopt("show", "run").out
    assert metaopt(*command.split()[1:]).code == 0
    done = metaopt(
        "-cd", place, *arguments[:-1], "hydra.run.dir=diverged", "outer_lr=1.0e+6",
        "problem.max_penalty=null", "outer_steps=20", "checkpoint_every=1",
    )  # fmt: skip
    assert f"metaopt --config-dir {place} resume=diverged" in done.err


@pytest.mark.slow
def test_check_takes_your_own_problem(metaopt: Metaopt, conf: Path) -> None:
    few = "steps=50", "warm_steps=0"
    done = metaopt("check", "-cd", str(conf), "problem=mine", "estimator=unroll", *few)
    assert done.code == 0, done.err
    assert "unroll" in done.out


def test_hydras_own_ways_keep_working(metaopt: Metaopt, conf: Path) -> None:
    sys.path.insert(0, str(conf.parent))
    done = metaopt("problem=mine", *TINY, f"hydra.searchpath=['file://{conf}']")
    assert done.code == 0, done.err
    (conf / "whole.yaml").write_text("defaults:\n  - train\n  - override problem: mine\n")
    done = metaopt("--config-dir", str(conf), "--config-name", "whole", *TINY)
    assert done.code == 0, done.err
    done = metaopt("-cd", str(conf), "--cfg", "job", "problem=mine", *TINY)
    assert (done.code, "mine_alone.Mine" in done.out) == (0, True)


def test_a_run_by_a_flag_of_hydra_has_its_exit_status(metaopt: Metaopt, conf: Path) -> None:
    assert metaopt("--run", "-cd", str(conf), "problem=mine", *TINY).code == 0
    done = metaopt("--run", "-cd", str(conf), "problem=mine", *TINY, "inner_steps=-1")
    assert (done.code, "inner_steps >= 1" in done.err) == (1, True)


def test_a_message_says_where_it_looked(metaopt: Metaopt, conf: Path) -> None:
    (conf.parent / "mine_alone.py").rename(conf.parent / "elsewhere.py")
    done = metaopt("--config-dir", str(conf), "problem=mine", *TINY)
    assert done.code == 1
    assert "no module 'mine_alone'" in done.err
    assert str(conf.parent) in done.err


def test_a_config_dir_that_is_no_folder_is_named(metaopt: Metaopt) -> None:
    for arguments in (["problem=ridge"], ["--help"], ["--cfg", "job", "problem=ridge"]):
        done = metaopt("--config-dir=nope", *arguments)
        assert (done.code, done.err) == (1, "metaopt: --config-dir=nope is not a folder.\n")


@pytest.mark.slow
def test_the_workers_of_a_launcher_find_it_too(metaopt: Metaopt, conf: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    from joblib.externals.loky import get_reusable_executor

    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = metaopt("-cd", str(conf), "-m", "problem=mine", "seed=0,1", *TINY, *launcher)
    get_reusable_executor().shutdown(wait=True)
    assert (done.code, "2 cells: 2 computed" in done.out) == (0, True), done.err
