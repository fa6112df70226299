"""A run that is killed while it writes comes to the same result, to the byte."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import Command
from small import shrunk

from metaopt import load
from metaopt.cli.folders import groups
from metaopt.testing.trees import identical

STEPS = ("outer_steps=5", "checkpoint_every=2", "eval_every=2", "label=killed", "figures=false")


def finish(folder: Path, *arguments: str) -> int:
    """Run a command to its end; return the number of its steps of writing."""
    command = Command(folder, *arguments, kill_at=-1)
    assert command.end() == 0, command.said()
    return int((folder / "steps.txt").read_text())


def content(folder: Path) -> dict[str, Any]:
    """Return what must be equal, to the byte; times differ."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]
    files = [p for p in folder.glob("*") if p.name.startswith(("result", "outer", "inner"))]
    return {"log": records, **{p.name: p.read_bytes() for p in files}}


def kill(folder: Path, moments: list[int], *arguments: str) -> None:
    """Kill a run at these steps of its writing, one after the other, and let it finish."""
    for moment in moments:
        ready = (folder / "killed" / "provenance.json").exists()
        words = ["resume=killed"] if ready else [*arguments, "hydra.run.dir=killed"]
        command = Command(folder, *words, kill_at=moment)
        if command.end() == 0:  # it had less to write than that
            break
        assert command.process.exitcode == -signal.SIGKILL, command.said()
    ready = (folder / "killed" / "provenance.json").exists()
    finish(folder, *(["resume=killed"] if ready else [*arguments, "hydra.run.dir=killed"]))


def compare(folder: Path) -> None:
    whole, killed = folder / "whole", folder / "killed"
    assert content(killed) == content(whole)
    first, second = map(load, (whole, killed))
    assert identical([first.outer, first.inner], [second.outer, second.inner])
    # Who was killed while giving the lock back leaves the file, which locks nothing.
    assert {p.name for p in killed.rglob("*")} - {".lock"} == {p.name for p in whole.rglob("*")}


@pytest.mark.slow
def test_killed_in_any_kind_of_writing(tmp_path: Path) -> None:
    arguments = ("problem=ridge", "estimator=implicit_nystrom", *STEPS)
    steps = finish(tmp_path, *arguments, "hydra.run.dir=whole")
    assert steps > 40
    kill(tmp_path, [steps // 2, 5, steps // 3], *arguments)
    compare(tmp_path)


@pytest.mark.slow
def test_killed_in_every_step_of_writing(tmp_path: Path) -> None:
    arguments = ("problem=ridge", "estimator=implicit_nystrom", *STEPS)
    for moment in range(1, finish(tmp_path, *arguments, "hydra.run.dir=whole") + 1):
        kill(tmp_path, [moment], *arguments)
        compare(tmp_path)
        shutil.rmtree(tmp_path / "killed")


@pytest.mark.slow
def test_killed_in_every_step_of_keeping_the_best_and_ending_early(tmp_path: Path) -> None:
    arguments = (
        "problem=ridge", "outer_lr=0.3", "figures=false", "outer_steps=60", "eval_every=4",
        "checkpoint_every=6", "keep_checkpoints=1", "keep_best=eval/test_loss",
        "early_stopping.metric=eval/test_loss", "early_stopping.patience=2",
    )  # fmt: skip
    steps = finish(tmp_path, *arguments, "hydra.run.dir=whole")
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["stopped"]["by"] == "early_stopping"
    assert 0 < result["best"]["outer_step"] < result["outer_steps"] < 60
    for moment in range(1, steps + 1):
        kill(tmp_path, [moment], *arguments)
        compare(tmp_path)
        first, second = (load(tmp_path / name, best=True) for name in ("whole", "killed"))
        assert identical([first.outer, first.inner], [second.outer, second.inner])
        shutil.rmtree(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "disk"])
def test_killed_inside_a_reverse_pass(tmp_path: Path, store: str) -> None:
    arguments = (
        "problem=ridge", "inner_steps=60", "estimator.schedule=revolve", "estimator.snapshots=4",
        "estimator.journal_every=10", f"estimator.store={store}", *STEPS, "outer_steps=2",
    )  # fmt: skip
    steps = finish(tmp_path, *arguments, "hydra.run.dir=whole")
    kill(tmp_path, sorted(random.Random(0).sample(range(2, steps), 6), reverse=True), *arguments)
    compare(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("problem", sorted(groups()["problem"]))
def test_every_problem_killed_while_it_writes(tmp_path: Path, problem: str) -> None:
    (tmp_path / "data").mkdir()
    small = [word for word in shrunk(problem, tmp_path / "data") if "outer_steps" not in word]
    arguments = (f"problem={problem}", *small, *STEPS, "figures=true")
    steps = finish(tmp_path, *arguments, "hydra.run.dir=whole")
    kill(tmp_path, sorted(random.Random(0).sample(range(2, steps), 4), reverse=True), *arguments)
    compare(tmp_path)
