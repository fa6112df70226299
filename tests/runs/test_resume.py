"""An interrupted run continues to the bit, whatever interrupted it."""

from __future__ import annotations

import functools
import json
import math
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command

from metaopt import Engine
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.estimators import ConjugateGradient, Implicit
from metaopt.files.reading import steps
from metaopt.files.tensors import read_tensors, write_tensors
from metaopt.optimizers import Descent
from metaopt.problems.examples import Ridge
from metaopt.runs.run import Interrupted, Run
from metaopt.runs.tracking import Tracker

ARGUMENTS = (
    "problem=ridge", "estimator=implicit_nystrom", "eval_every=50", "checkpoint_every=7",
    "problem.inner_optimizer.lr=1.0e-2", "figures=false", "label=killed",
    "+problem.inner_optimizer.momentum=0.5",
)  # fmt: skip


def last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return json.loads(whole[-1])["outer_step"] if whole else 0


def complete(folder: Path, *arguments: str) -> None:
    assert Command(folder, *arguments).end() == 0


def kill_and_compare(folder: Path, kills: int, steps: int) -> None:
    common = *ARGUMENTS, f"outer_steps={steps}"
    whole, killed = folder / "whole", folder / "killed"
    complete(folder, *common, "hydra.run.dir=whole")
    moments = sorted(random.Random(kills).sample(range(2, steps - 30), kills))
    arguments: tuple[str, ...] = (*common, "hydra.run.dir=killed")
    for step in moments:
        command = Command(folder, *arguments, signal_at=(step, signal.SIGKILL))
        assert command.end() == -signal.SIGKILL
        assert not (killed / "result.json").exists()
        arguments = ("resume=killed",)
    complete(folder, *arguments)
    assert (killed / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert without_times(killed) == without_times(whole)
    first, second = (read_tensors(f / "final.pt") for f in (whole, killed))
    assert torch.equal(first["inner"].params["weight"], second["inner"].params["weight"])
    assert not list(killed.rglob("*.part"))


def without_times(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]


@pytest.mark.slow
def test_killed_three_times_the_result_is_the_same_to_the_byte(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 3, steps=150)


@pytest.mark.slow
def test_killed_five_times_the_result_is_the_same_to_the_byte(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 5, steps=300)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_between_steps_with_a_checkpoint(
    tmp_path: Path, signum: int, code: int
) -> None:
    long = "outer_steps=400", "checkpoint_every=100000"
    command = Command(tmp_path, *ARGUMENTS, *long, "hydra.run.dir=run", signal_at=(5, signum))
    assert command.end() == code
    assert "metaopt resume=run" in command.said()
    ((step, _),) = steps(tmp_path / "run" / "checkpoints")
    assert step == last_step(tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


class Watch(Tracker):
    """Sends a signal to this process when a step is logged."""

    def __init__(self, at: int | None, label: str, total: int, done: int) -> None:
        self.at = at

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.at:
            signal.raise_signal(signal.SIGTERM)


def build(folder: Path, at: int | None = None, **settings: Any) -> Run:
    folder.mkdir(exist_ok=True)
    engine = Engine(
        Ridge(inner_optimizer=SGD(lr=0.05, momentum=0.9)),
        Implicit(ConjugateGradient(iterations=3)),
        Descent(functools.partial(torch.optim.Adam, lr=0.01), accumulate=3),
        outer_steps=20,
    )
    watch = functools.partial(Watch, at)
    config = {"name": "r", "seed": 0, "outer_steps": 20}
    return Run(engine, folder, config, figures=False, watch=watch, **settings)


def result(folder: Path) -> bytes:
    return (folder / "result.json").read_bytes()


@pytest.mark.parametrize("at", [1, 7, 19, 20])
def test_stopped_anywhere_it_continues_to_the_bit(tmp_path: Path, at: int) -> None:
    build(tmp_path / "whole")()
    with pytest.raises(Interrupted, match=f"SIGTERM after outer step {at}"):
        build(tmp_path / "part", at)()
    assert not (tmp_path / "part" / "result.json").exists()
    build(tmp_path / "part")()
    assert result(tmp_path / "part") == result(tmp_path / "whole")
    assert without_times(tmp_path / "part") == without_times(tmp_path / "whole")


def test_how_often_it_logs_and_saves_does_not_change_the_result(tmp_path: Path) -> None:
    build(tmp_path / "a")()
    build(tmp_path / "b", log_every=7, eval_every=3, checkpoint_every=2)()
    assert result(tmp_path / "a") == result(tmp_path / "b")


class Service(Tracker):
    """Takes one step, fails at the second; says how often it was closed."""

    closed = 0

    def __init__(self, *_: Any) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert all(type(value) in (int, float) for value in metrics.values())
        if step == 2:
            raise ArithmeticError

    def close(self) -> None:
        Service.closed += 1
        raise OSError("disk full")


def test_a_service_that_fails_is_closed_and_the_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = []

    class Screen(Watch):
        def close(self) -> None:
            closed.append(self)

    run = build(tmp_path / "a", service=Service)
    run.watch = functools.partial(Screen, None)
    assert run()["outer_steps"] == 20
    assert (len(closed), Service.closed) == (1, 1)
    assert capsys.readouterr().err.count("Service failed while logging outer step 2") == 1


class Replicates(Ridge):
    """Says what three replicates came to, one of them to nothing."""

    def metrics(self, outer: Tree, inner: GradientState) -> dict[str, float | torch.Tensor]:
        return {"one": 1.0, "each": torch.tensor([1.0, 2.0, math.nan])}


@pytest.mark.parametrize("known", [True, False], ids=["known", "older checkpoint"])
def test_cpu_seconds_include_those_before_a_resume(tmp_path: Path, known: bool) -> None:
    with pytest.raises(Interrupted):
        build(tmp_path, 7)()
    ((_, path),) = steps(tmp_path / "checkpoints")
    state = read_tensors(path)
    assert 0 < state.pop("cpu_seconds") < 60
    write_tensors(path, state | ({"cpu_seconds": 1000.0} if known else {}))
    build(tmp_path)()
    spent = json.loads((tmp_path / "timing.json").read_text())["cpu_seconds"]
    assert 1000 < spent < 1060 if known else spent is None


def test_the_result_keeps_every_replicate(tmp_path: Path) -> None:
    run = build(tmp_path / "a")
    run.engine.loop.problem = Replicates()
    actual = run()
    assert actual["metrics"]["eval/one"] == 1.0
    assert actual["metrics"]["eval/each"] is None
    assert actual["replicates"] == {"eval/each": [1.0, 2.0, None]}
    assert json.loads(result(tmp_path / "a"))["replicates"] == actual["replicates"]


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    build(tmp_path / "a")()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_damaged_checkpoint_is_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "whole")()
    with pytest.raises(Interrupted):
        build(tmp_path / "part", 11, checkpoint_every=5)()
    (_, older), (_, newest) = steps(tmp_path / "part" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    build(tmp_path / "part")()
    assert f"{newest} is damaged; continuing from {older.name}" in capsys.readouterr().err
    assert result(tmp_path / "part") == result(tmp_path / "whole")


def test_without_a_readable_checkpoint_the_message_names_the_file(
    metaopt: Callable[..., Any],
) -> None:
    run = ("problem=ridge", "debug=tiny", "figures=false", "hydra.run.dir=run")
    metaopt(*run)
    Path("run/result.json").unlink()
    for _, path in steps(Path("run/checkpoints")):
        path.write_bytes(b"damaged")
    done = metaopt("resume=run")
    assert done.code == 1
    assert "run/checkpoints/step_00000003.pt cannot be read" in done.err
    assert "delete run/checkpoints to start from the first step" in done.err
    assert "Traceback" not in done.err
    assert not Path("run/result.json").exists()


def test_a_complete_run_is_not_run_again(metaopt: Callable[..., Any]) -> None:
    metaopt("problem=ridge", "debug=tiny", "figures=false", "hydra.run.dir=run")
    before = result(Path("run"))
    done = metaopt("resume=run")
    assert done.code == 0
    assert "already finished" in done.out
    assert result(Path("run")) == before
