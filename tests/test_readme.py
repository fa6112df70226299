"""The README's example problem, added as the README says: one Python file and one YAML."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NAME = "label_cleaning"


def block(language):
    """Return the first block of a language after the heading `Add a problem`."""
    section = README.read_text().split("\n## Add a problem\n", 1)[1]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a copy of the sources with the two files of the README added."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("metaopt", "configs", "tests/contract"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("small.py", "conftest.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copy(ROOT / "setup.cfg", folder)
    (folder / f"metaopt/problems/examples/{NAME}.py").write_text(block("python"))
    (folder / f"configs/problem/{NAME}.yaml").write_text(block("yaml"))
    return folder


RUNS = """
import contextlib, io, json, sys
from metaopt.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, said.getvalue()]))
"""
"""Runs each of several command lines, in one process."""


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_example_is_in_the_help_runs_and_beats_equal_weights(copy):
    run = [f"problem={NAME}", "hydra.run.dir=learnt"]
    equal = [f"problem={NAME}", "hydra.run.dir=equal", "estimator=score", "optimizer=schedule"]
    done = python(copy, "-c", RUNS, json.dumps([["--help"], run, equal]))
    assert done.returncode == 0, done.stderr
    codes, said = zip(*map(json.loads, done.stdout.splitlines()), strict=True)
    assert codes == (0, 0, 0), done.stderr
    assert NAME in said[0]
    learnt, equal = metrics(copy / "learnt"), metrics(copy / "equal")
    assert equal["eval/test_accuracy"] < 0.7
    assert learnt["eval/test_accuracy"] > 0.9
    assert learnt["eval/labels_judged_right"] > 0.9


def test_contracts_pick_the_example_up(copy):
    done = python(copy, "-m", "pytest", "tests/contract", "-k", NAME, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1[0-9] passed|\.{10,}", done.stdout)
