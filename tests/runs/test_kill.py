"""A run that is killed while it writes comes to the same result, to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command, call, copying, fork, settle, stepping
from small import shrunk

from metaopt import load
from metaopt.cli.folders import groups
from metaopt.runs.tracking import Jsonl
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


def finish_every_copy(folder: str, environment: dict[str, str], *arguments: str) -> None:
    """Run a command, copy its folder in each step of its writing, and let each copy finish.

    In one process: that of a kill has nothing that its folder does not have, and starting it again
    would take most of the time.
    """
    settle(folder, environment)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, getattr(owner, name))
        patch.setattr(torch, "save", torch.save)
        patch.setattr(Jsonl, "record", Jsonl.record)
        steps = stepping(copying(Path("whole"), Path("killed")))
        ended(*arguments, "hydra.run.dir=whole")
    for step in range(1, steps() + 1):
        copy = Path("killed", str(step))
        begun = (copy / "provenance.json").exists()
        ended(*([f"resume={copy}"] if begun else [*arguments, f"hydra.run.dir={copy}"]))


def ended(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code in (None, 0)


def every_copy(folder: Path, *arguments: str) -> list[Path]:
    """Return the folders of runs that were killed in each step of their writing."""
    process = fork(finish_every_copy, str(folder), {**os.environ}, *arguments)
    process.join(600)
    assert process.exitcode == 0, (folder / "messages.txt").read_text()
    return sorted(folder.glob("killed/*"))


def compare(folder: Path, name: str = "killed") -> None:
    whole, killed = folder / "whole", folder / name
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
    copies = every_copy(tmp_path, "problem=ridge", "estimator=implicit_nystrom", *STEPS)
    assert len(copies) > 40
    for copy in copies:
        compare(tmp_path, f"killed/{copy.name}")


@pytest.mark.slow
def test_killed_in_every_step_of_keeping_the_best_and_ending_early(tmp_path: Path) -> None:
    arguments = (
        "problem=ridge", "outer_lr=0.3", "figures=false", "outer_steps=60", "eval_every=4",
        "checkpoint_every=6", "keep_checkpoints=1", "keep_best=eval/test_loss",
        "early_stopping.metric=eval/test_loss", "early_stopping.patience=2",
    )  # fmt: skip
    copies = every_copy(tmp_path, *arguments)
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["stopped"]["by"] == "early_stopping"
    assert 0 < result["best"]["outer_step"] < result["outer_steps"] < 60
    best = load(tmp_path / "whole", best=True)
    assert len(copies) > 40
    for copy in copies:
        compare(tmp_path, f"killed/{copy.name}")
        other = load(copy, best=True)
        assert identical([best.outer, best.inner], [other.outer, other.inner])


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


CLASSES = {"data_curation/dpo", "reward_design/bank", "template_evolution/judge_calibration"}
CLASSES |= {name for name in groups()["problem"] if "/" not in name}
"""Other variants of a problem write what it writes; `test_configs.py` resumes all to the bit."""


@pytest.mark.slow
@pytest.mark.parametrize("problem", sorted(CLASSES))
def test_every_problem_killed_while_it_writes(tmp_path: Path, problem: str) -> None:
    (tmp_path / "data").mkdir()
    small = [word for word in shrunk(problem, tmp_path / "data") if "outer_steps" not in word]
    arguments = (f"problem={problem}", *small, *STEPS, "figures=true")
    steps = finish(tmp_path, *arguments, "hydra.run.dir=whole")
    kill(tmp_path, sorted(random.Random(0).sample(range(2, steps), 2), reverse=True), *arguments)
    compare(tmp_path)
