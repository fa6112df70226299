"""The README's example problem, added as the README says: one Python file and one YAML."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    (folder / f"metaopt/problems/{NAME}.py").write_text(block("python"))
    (folder / f"configs/problem/{NAME}.yaml").write_text(block("yaml"))
    return folder


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def run(folder, *overrides):
    """Run the command line and return the run's metrics."""
    command = "import sys; from metaopt.cli import main; sys.exit(main())"
    done = python(folder, "-c", command, f"problem={NAME}", "hydra.run.dir=run", *overrides)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "run/result.json").read_text())
    shutil.rmtree(folder / "run")
    return result["metrics"]


def test_example_runs_and_beats_equal_weights(copy):
    learnt = run(copy)
    equal = run(copy, "estimator=score", "optimizer=schedule")
    assert equal["eval/test_accuracy"] < 0.7
    assert learnt["eval/test_accuracy"] > 0.9
    assert learnt["eval/labels_judged_right"] > 0.9


def test_contracts_pick_the_example_up(copy):
    done = python(copy, "-m", "pytest", "tests/contract", "-k", NAME, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1[0-9] passed|\.{10,}", done.stdout)


def test_example_is_found_by_the_help(copy):
    done = python(copy, "-c", "from metaopt.cli import main; main()", "--help")
    assert NAME in done.stdout
