"""A reverse pass that is interrupted at any moment ends with the same numbers, to the bit."""

from itertools import product

import pytest
import torch
from combined import problem as combined

import metaopt
from metaopt import Descent
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.estimators.reverse import journal, passes, stores
from metaopt.files.tensors import read_tensors
from metaopt.testing.trees import identical

STEPS, EVERY = 18, 4
SCHEDULES = {
    "revolve": {"schedule": "revolve", "snapshots": 3},
    "segments": {"segments": 6},
    "each step": {"segments": STEPS},
}
WHERE = {
    "steps": (InnerLoop, "step_"), "adjoints": (passes, "through_steps"),
    "entries": (journal, "write_tensors"), "states": (stores, "write_tensors"),
}  # fmt: skip
"""What a pass is interrupted in."""

QUICK = [("memory", "revolve", "adjoints"), ("disk", "revolve", "entries")]


class KilledError(BaseException):
    """As a signal, nothing catches it."""


@pytest.fixture
def interrupted(monkeypatch):
    """Return what calls a function until the n-th call of something, and counts the calls."""

    def call(function, where, at=None):
        owner, name = WHERE[where]
        original, count = getattr(owner, name), 0

        def replaced(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                raise KilledError
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replaced)
            try:
                return function(), count
            except KilledError:
                return None, count

    return call


def run(problem, folder, step=0, **settings):
    loop = InnerLoop(problem)
    loop.folder, loop.outer_step = folder, step
    outer = problem.init_outer(generator(0))
    unroll = Unroll(STEPS, **{"journal_every": EVERY, **settings})
    end, feedback = unroll(loop, outer, loop.start(outer, None, 3), 3)
    return [end, feedback.value, feedback.grad, feedback.cost, feedback.metrics]


@pytest.mark.parametrize(
    ("store", "schedule", "where"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(("memory", "disk"), SCHEDULES, WHERE)
    ],
)
def test_an_interrupted_pass_ends_as_a_whole_one(tmp_path, interrupted, store, schedule, where):
    problem, settings = combined("AdamW", "BatchNorm"), {"store": store, **SCHEDULES[schedule]}
    whole, calls = interrupted(lambda: run(problem, tmp_path / "whole", **settings), where)
    taken = interrupted(lambda: run(problem, None, **settings), "adjoints")[1]
    # What an earlier attempt has done may leave less than that to do.
    for at in (calls // 2, 3, calls // 4) if calls else ():
        interrupted(lambda: run(problem, tmp_path, **settings), where, max(at, 1))
    result, again = interrupted(lambda: run(problem, tmp_path, **settings), "adjoints")
    assert identical(result, whole)
    assert again <= taken


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_no_more_is_lost_than_between_two_entries(tmp_path, interrupted, store):
    problem, settings = combined("AdamW", "dropout"), {"store": store, **SCHEDULES["revolve"]}
    done = 0
    for at in (5, 6, 3, 5):
        _, calls = interrupted(lambda: run(problem, tmp_path, **settings), "adjoints", at)
        done += calls - 1
    result, calls = interrupted(lambda: run(problem, tmp_path, **settings), "adjoints")
    assert done + calls - STEPS <= 4 * EVERY
    assert identical(result, run(problem, None, **settings))


def test_a_pass_that_is_over_is_not_run_again(tmp_path, interrupted):
    problem, settings = combined("AdamW", "dropout"), {"store": "disk", **SCHEDULES["revolve"]}
    first = run(problem, tmp_path, **settings)
    assert {path.name for path in tmp_path.rglob("*.pt")} == {"journal.pt", "end.pt"}
    again, calls = interrupted(lambda: run(problem, tmp_path, **settings), "adjoints")
    assert identical(again, first)
    assert calls == 0


OTHERS = {
    "optimizer": lambda p: setattr(p, "inner_optimizer", SGD(lr=0.1)),
    "training data": lambda p: setattr(p, "x", p.x + 0.1),
    "held-out data": lambda p: setattr(p, "x_held_out", p.x_held_out + 0.1),
    "first state": lambda p: p.params["last.bias"].add_(0.1),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "moment", [("adjoints", 7), pytest.param(("steps", 15), marks=pytest.mark.slow)]
)
def test_what_another_pass_has_left_is_not_used(tmp_path, interrupted, other, moment):
    settings = {"store": "disk", **SCHEDULES["revolve"]}
    interrupted(lambda: run(combined("AdamW", "dropout"), tmp_path, **settings), *moment)
    problem = combined("AdamW", "dropout")
    OTHERS[other](problem)
    expected = run(problem, None, **settings)
    assert identical(run(problem, tmp_path, **settings), expected)


@pytest.mark.parametrize(
    "change", [{"truncation": STEPS - 2}, {"snapshots": 4}, {"step": 1}], ids=str
)
def test_nor_what_another_estimator_or_outer_step_has_left(tmp_path, interrupted, change):
    problem, settings = combined("AdamW", "dropout"), {"store": "disk", **SCHEDULES["revolve"]}
    interrupted(lambda: run(problem, tmp_path, **settings), "adjoints", 7)
    expected = run(problem, None, **{**settings, **change})
    assert identical(run(problem, tmp_path, **{**settings, **change}), expected)


def test_a_file_that_is_cut_is_computed_again(tmp_path, interrupted):
    problem, settings = combined("AdamW", "dropout"), {"store": "disk", **SCHEDULES["revolve"]}
    interrupted(lambda: run(problem, tmp_path, **settings), "adjoints", 7)
    for path in tmp_path.rglob("*.pt"):
        path.write_bytes(path.read_bytes()[:-40])
    assert identical(run(problem, tmp_path, **settings), run(problem, None, **settings))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_disk_and_memory_agree_to_the_bit(schedule):
    problem = combined("AdamW", "average")
    runs = [run(problem, None, store=store, **SCHEDULES[schedule]) for store in ("memory", "disk")]
    assert identical(*runs)


def test_frozen_weights_are_not_stored(tmp_path, interrupted):
    problem, settings = combined("AdamW", "frozen"), {"store": "disk", **SCHEDULES["revolve"]}
    interrupted(lambda: run(problem, tmp_path, **settings), "adjoints", 7)
    states = [read_tensors(path) for path in tmp_path.rglob("state_*.pt")]
    assert states
    frozen = list(problem.frozen.values())
    for tensor in tree.tensors(states):
        assert not any(t.shape == tensor.shape and torch.equal(t, tensor) for t in frozen)


def test_a_run_has_a_checkpoint_after_each_long_step_and_leaves_no_journal(tmp_path, interrupted):
    problem, folder = combined("momentum", "direct"), tmp_path / "run"
    unroll = Unroll(STEPS, journal_every=EVERY, store="disk", **SCHEDULES["revolve"])
    settings = {"estimator": unroll, "optimizer": Descent("adam", lr=0.1), "progress": False}
    whole = metaopt.run(problem, outer_steps=3, figures=False, **settings)

    def start():
        return metaopt.run(problem, outer_steps=3, folder=folder, figures=False, **settings)

    interrupted(start, "adjoints", STEPS + 7)
    assert [path.name for path in folder.glob("checkpoints/*")] == ["step_00000001.pt"]
    assert [path.name for path in folder.glob("reverse/*")] == ["step_00000002"]
    resumed, calls = interrupted(
        lambda: metaopt.resume(folder, problem=problem, **settings), "adjoints"
    )
    assert calls <= 2 * STEPS - 6 + EVERY
    assert identical([resumed.outer, resumed.inner], [whole.outer, whole.inner])
    assert not (folder / "reverse").exists()
