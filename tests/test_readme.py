"""The README's example, by Python and by the command line; its commands are in tests/docs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metaopt.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language):
    """Return the first block of a language after the heading `An example`."""
    section = README.split("\n## An example\n", 1)[1]
    return re.search(rf"```{language}[^\n]*\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the two files of the example, in which it ran in both ways."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "noisy.py").write_text(block("python"))
    (folder / "conf/problem").mkdir(parents=True)
    (folder / "conf/problem/noisy.yaml").write_text(block("yaml"))
    run(folder, "noisy.py")
    run(folder, "-m", "metaopt", "--config-dir", "conf", "problem=noisy", "hydra.run.dir=command",
        "figures=false")  # fmt: skip
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.mark.slow
def test_python_and_the_command_line_give_the_same(folder):
    assert metrics(folder / "command") == metrics(folder / "runs/noisy_python")


@pytest.mark.slow
def test_learned_weights_beat_equal_ones(folder):
    run(folder, "-m", "metaopt", "--config-dir", "conf", "problem=noisy", "hydra.run.dir=equal",
        "estimator=score", "optimizer=schedule", "figures=false")  # fmt: skip
    equal, learned = metrics(folder / "equal"), metrics(folder / "command")
    assert equal["eval/test_accuracy"] < 0.75
    assert learned["eval/test_accuracy"] > 0.85
    assert learned["eval/noise_detection_accuracy"] > 0.85


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 220
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_is_in_the_table():
    section = README.split("\n## Commands\n", 1)[1].split("\n## ", 1)[0]
    for name, verb in VERBS.items():
        assert (f"`metaopt-{name} " if verb.script else f"`metaopt {name} ") in section
