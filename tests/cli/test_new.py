"""A problem written by `metaopt-new` runs, is checked and keeps its contract as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import folders
from metaopt.runs.python import load


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    yield
    folders.use([])
    sys.modules.pop("sines", None)


def passes(folder: Path) -> str:
    """Run the tests of a folder in a process of its own, which imports this process's metaopt."""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=folder,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gradient", "black_box"])
def test_a_new_problem_runs_is_checked_and_keeps_its_contract(
    metaopt: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    flags = ["--black-box"] if kind == "black_box" else []
    said = metaopt("new", "sines", *flags).out
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"sines.py", "conf/problem/sines.yaml", "test_sines.py"}
    assert all(name in said for name in files)
    assert len((tmp_path / "test_sines.py").read_text().splitlines()) == 3
    done = metaopt("--config-dir", "conf", "problem=sines", "debug=tiny")
    assert (done.code, "everything is in runs/sines/" in done.out) == (0, True), done.err
    (folder,) = Path("runs/sines").iterdir()
    result = load(folder)
    assert (type(result.problem).__name__, result.outer_steps, result.finished) == (
        "Sines",
        3,
        True,
    )
    if kind == "gradient":
        assert set(result.outer) == {"w1", "b1", "w2", "b2"}
        done = metaopt("check", "--config-dir", "conf", "problem=sines")
        assert (done.code, done.err) == (0, "")
        assert re.search(r"^unroll +cold", done.out, re.MULTILINE)
    assert re.fullmatch(r"\d+ passed.*", passes(tmp_path).splitlines()[-1])


@pytest.mark.parametrize("flags", [[], ["--black-box"]])
def test_a_check_of_hypergradients_is_next_only_where_there_are_some(
    metaopt: Callable[..., Any], flags: list[str]
) -> None:
    lines = metaopt("new", "words", *flags).out.partition("Next:\n")[2].splitlines()
    commands = [line.partition("#")[0].split()[0] for line in lines]
    assert commands == ["metaopt", *([] if flags else ["metaopt-check"]), "pytest"]


@pytest.mark.parametrize("name", ["my-lab", "Sines", "class", "torch"])
def test_a_name_that_cannot_be_a_module_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaopt.cli.new_problem import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=name):
        main([name])
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt.cli.new_problem import main

    monkeypatch.chdir(tmp_path)
    Path("sines.py").write_text("mine")
    with pytest.raises(ValueError, match=r"sines\.py is there already; nothing was written"):
        main(["sines"])
    assert [p.name for p in tmp_path.iterdir()] == ["sines.py"]


def test_a_file_in_the_place_of_the_folder_is_named(metaopt: Callable[..., Any]) -> None:
    Path("conf").touch()
    done = metaopt("new", "sines")
    assert done.code == 1
    assert "conf is a file, and a folder is needed; nothing was written" in done.err
    assert [path.name for path in Path().iterdir()] == ["conf"]


def test_a_folder_that_cannot_be_written_is_named(
    metaopt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    done = metaopt("new", "sines")
    assert done.code == 1
    assert "sines.py cannot be written in " in done.err
    assert "Run metaopt-new in a folder that you may write to." in done.err
    assert "hydra" not in done.err
