"""A problem written by `metaopt-new` runs, is checked and keeps its contract as written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def command(*arguments: str, folder: Path, module: str = "metaopt") -> str:
    """Run a command in a process of its own, where metaopt is what this process imports."""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["gradient", "black_box"])
def test_a_new_problem_runs_is_checked_and_keeps_its_contract(tmp_path: Path, kind: str) -> None:
    flags = ["--black-box"] if kind == "black_box" else []
    said = command("new", "sines", *flags, folder=tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"sines.py", "conf/problem/sines.yaml", "test_sines.py"}
    assert all(name in said for name in files)
    assert len((tmp_path / "test_sines.py").read_text().splitlines()) == 3
    own = ("--config-dir", "conf", "problem=sines")
    assert "everything is in runs/sines/" in command(*own, "debug=tiny", folder=tmp_path)
    if kind == "gradient":
        checked = command(
            "check", *own, "estimator=unroll,one_step", "warm_steps=0", folder=tmp_path
        )
        assert "unroll" in checked
    passed = command("-q", "-p", "no:cacheprovider", folder=tmp_path, module="pytest")
    assert "passed" in passed
    assert "failed" not in passed


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
