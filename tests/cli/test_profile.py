"""`metaopt-profile`: which part has the seconds and the memory, and that the run is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from metaopt import Descent, Engine, Implicit, Search, Soba, Unroll
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import Draw
from metaopt.estimators.score import Score
from metaopt.optimizers import Mutation
from metaopt.problems.examples import Knapsack, Ridge
from metaopt.testing import stopwatch
from metaopt.testing.profile import profile
from metaopt.testing.trees import identical

Metaopt = Callable[..., Any]

STEP = {"outer optimizer: ask", "outer optimizer: tell", "inner start", "inner steps", "outer loss"}
DIFFERENTIATED = STEP | {"inner batches", "outer batches", "hypergradient", "checks"}

RUNS = {
    "problem=ridge estimator=unroll": (DIFFERENTIATED, {"inner steps": 5, "inner batches": 5}),
    "problem=ridge estimator=implicit": (DIFFERENTIATED, {"inner steps": 5, "inner batches": 6}),
    "problem=ridge estimator=soba seeds=3": (DIFFERENTIATED, {"inner steps": 1}),
    "problem=knapsack": (STEP | {"estimator"}, {"inner steps": 4}),
}
"""By command: the parts of an outer step, and calls of some of them."""


@pytest.mark.parametrize("command", RUNS)
def test_the_parts_of_a_run_add_up(command: str, metaopt: Metaopt) -> None:
    done = metaopt("profile", *command.split(), "steps=3", "json=costs.json")
    assert done.code == 0, done.err
    numbers = json.loads(Path("costs.json").read_text())
    parts = {part["name"]: part for part in numbers["parts"]}
    names, calls = RUNS[command]
    assert parts.keys() == names | {"other", "evaluation", "checkpoint"}
    assert {name: parts[name]["calls"] for name in calls} == pytest.approx(calls)
    assert min(part["seconds"] for part in parts.values()) >= 0
    total = sum(part["seconds"] for part in parts.values())
    assert numbers["seconds_per_outer_step"] == pytest.approx(total)
    assert numbers["steps"] == 3
    assert parts["inner steps"]["peak_bytes"] > 0
    assert [path.name for path in Path().iterdir()] == ["costs.json"]  # and no run folder
    assert max(map(len, done.out.splitlines())) <= 80
    *_, largest = sorted(parts, key=lambda name: parts[name]["seconds"])
    assert f"Largest: {largest}, " in done.out


class Cold(Ridge):
    """Ridge trained from zero in each outer step, which several tasks need."""

    warm_start = False


def made(name: str) -> Engine:
    """Return an engine of the 8 outer steps that a profile takes."""
    if name == "knapsack":
        search = Search(Mutation(vocabulary=["add", "drop", "worst", "swap"]))
        return Engine(Knapsack(), Score(inner_steps=2), search, outer_steps=8, seed=3)
    estimator: Any = {
        "unroll": lambda: Unroll(3, schedule="segments", segments=3),
        "tasks": lambda: Unroll(3, tasks=2),
        "implicit": lambda: Implicit(inner_steps=2),
        "soba": Soba,
    }[name]()
    seeds = 2 if name == "soba" else None
    problem = (Cold if name == "tasks" else Ridge)(features=5, rows=10)
    adam = Descent("adam", lr=0.1)
    return Engine(problem, estimator, adam, outer_steps=8, seed=3, seeds=seeds)


@pytest.mark.parametrize("name", ["unroll", "tasks", "implicit", "soba", "knapsack"])
def test_a_profile_changes_no_bit_of_a_run(name: str) -> None:
    step = vars(InnerLoop)["step_"]
    measured, plain = made(name), made(name)
    profile(measured, 5)
    for _ in plain:
        pass
    assert measured.outer_step == plain.outer_step == 8
    assert identical(measured.state_dict(), plain.state_dict())
    assert vars(InnerLoop)["step_"] is step


class Timed(Ridge):
    """Ridge whose methods take a known time on a clock of the test's."""

    now = 0.0

    def _take(self, seconds: float) -> None:
        type(self).now += seconds

    def inner_batch(self, draw: Draw) -> Any:
        self._take(3)
        return super().inner_batch(draw)

    def outer_batch(self, draw: Draw) -> Any:
        self._take(5)
        return super().outer_batch(draw)

    def inner_loss(self, outer: Any, inner: Any, batch: Any) -> Tensor:
        self._take(7)
        return super().inner_loss(outer, inner, batch)

    def outer_loss(self, outer: Any, inner: Any, batch: Any) -> Tensor:
        self._take(11)
        return super().outer_loss(outer, inner, batch)

    def observe(self, outer: Any, inner: Any, feedback: Any) -> Any:
        self._take(13)
        return super().observe(outer, inner, feedback)

    def metrics(self, outer: Any, inner: Any) -> Any:
        self._take(40)
        return super().metrics(outer, inner)


@pytest.mark.parametrize("name", ["unroll", "implicit"])
def test_time_is_that_of_the_part_that_spends_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(perf_counter=lambda: Timed.now, process_time=lambda: Timed.now / 2)
    monkeypatch.setattr(stopwatch, "time", clock)
    estimator = Unroll(2) if name == "unroll" else Implicit(inner_steps=2)
    engine = Engine(Timed(features=5, rows=10), estimator, Descent("sgd", lr=0.1), outer_steps=20)
    costs = profile(engine, 4, warm_steps=4, eval_every=10)  # the fifth step is looked at
    solve = int(name == "implicit")  # takes g on a batch of its own
    seconds = {part.name: part.seconds for part in costs.parts}
    checks = seconds.pop("checks")
    assert checks > 0
    assert seconds == {
        "outer optimizer: ask": 0, "inner start": 0, "inner batches": 3 * (2 + solve),
        "inner steps": 7 * 2, "outer batches": 5, "outer loss": 11, "hypergradient": 7 * solve,
        "outer optimizer: tell": 0, "other": 13, "evaluation": 4, "checkpoint": 0,
    }  # fmt: skip
    assert costs.seconds == sum(seconds.values()) + checks
    assert [p.cpu_seconds for p in costs.parts] == [p.seconds / 2 for p in costs.parts]


class Large(Ridge):
    """Ridge that makes 8 MB for a moment with each inner batch, and 4 MB with F."""

    def inner_batch(self, draw: Draw) -> Any:
        torch.zeros(1_000_000, dtype=torch.float64)
        return super().inner_batch(draw)

    def outer_loss(self, outer: Any, inner: Any, batch: Any) -> Tensor:
        torch.zeros(500_000, dtype=torch.float64)
        return super().outer_loss(outer, inner, batch)


def test_memory_is_that_of_the_part_that_holds_it() -> None:
    engine = Engine(Large(features=5, rows=10), Unroll(2), Descent("sgd", lr=0.1), outer_steps=20)
    peaks = {part.name: part.peak_bytes for part in profile(engine, 1).parts}
    small = 20_000  # what ridge itself needs
    assert 8e6 <= peaks.pop("inner batches") < 8e6 + small
    assert 4e6 <= peaks.pop("outer loss") < 4e6 + small
    assert max(peak for peak in peaks.values() if peak is not None) < small


REFUSED = {
    "problem=ridge steps=0": "steps must be a whole number >= 1; got '0'",
    "problem=ridge warm_steps=-1": "warm_steps must be a whole number >= 0; got '-1'",
    "problem=ridge json=nowhere/a.json": "json=nowhere/a.json names a file in a folder that",
    "problem=ridge json=.": "json=. cannot be written",
    "problem=ridge outer_steps=5": "outer_steps must be >= 13",
    "problem=ridge limits={gradients:3}": "stopped (gradients) before an outer step was timed",
    "problem=ridge outer_lrr=1": "Did you mean outer_lr?",
    "problem=rigde": "The nearest: ridge",
    "problem=ridge seeds=0": "seeds",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_profiled_is_explained(command: str, metaopt: Metaopt) -> None:
    done = metaopt("profile", *command.split())
    assert (done.code, done.out) == (1, "")
    assert REFUSED[command] in done.err
    assert "Traceback" not in done.err
    assert [*Path().iterdir()] == []


def test_a_run_that_ends_early_is_profiled_up_to_there(metaopt: Metaopt) -> None:
    done = metaopt("profile", "problem=ridge", "limits={gradients:40}", "json=costs.json")
    assert done.code == 0, done.err
    numbers = json.loads(Path("costs.json").read_text())
    assert (numbers["steps"], numbers["stopped"]) == (5, "gradients")
    assert "stopped after 5 of the outer steps: gradients" in done.out


def test_several_processes_are_refused(metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = metaopt("profile", "problem=ridge")
    assert (done.code, "start it without torchrun" in done.err) == (1, True)
