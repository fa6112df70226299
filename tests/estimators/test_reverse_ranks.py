"""The reverse pass on two processes: as one on the union of the batches, and killed at any time."""

import os
import signal
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from ranks import RANKS, Rows, Union, spawn

from metaopt import Engine
from metaopt.engine import distributed
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.estimators import Unroll
from metaopt.estimators.reverse import journal, passes
from metaopt.optimizers import Descent
from metaopt.testing.trees import identical

pytestmark = pytest.mark.slow

STEPS, EVERY = 12, 3
SCHEDULES = {
    "whole": {"schedule": "whole"},
    "segments": {"segments": 4},
    "measured": {"schedule": "segments"},
    "revolve": {"schedule": "revolve", "snapshots": 3},
}
OPTIMIZERS = {
    "sgd": SGD(lr=0.05, momentum=0.5, weight_decay=0.1, clip_norm=0.5),
    "adamw": AdamW(lr=0.05, weight_decay=0.1, clip_norm=0.5),
}
CASES = list(product(SCHEDULES, ("memory", "disk"), OPTIMIZERS))


def run(problem, folder, schedule, store, optimizer, steps=2):
    """Return values, adjoint growths, phi and theta of a run; a case is one of `CASES`."""
    unroll = Unroll(STEPS, store=store, journal_every=EVERY, **SCHEDULES[schedule])
    engine = Engine(
        problem(OPTIMIZERS[optimizer]), unroll, Descent("adam", lr=0.1), outer_steps=steps
    )
    engine.loop.folder = None if folder is None else Path(folder)
    said = [
        (f.value, f.metrics["inner/adjoint_growth"], f.metrics["inner/loss"]) for _, f in engine
    ]
    flat = [torch.as_tensor(x, dtype=torch.float64) for each in said for x in each]
    return [flat, dict(engine.optimizer.solution), dict(engine.inner.params)]


def all_cases(folder, rank):
    return [run(Rows, f"{folder}/{i}", *case) for i, case in enumerate(CASES)]


def test_two_processes_are_one_on_the_union_of_the_batches(tmp_path):
    ranks = spawn(partial(all_cases, str(tmp_path)), tmp_path)
    for i, case in enumerate(CASES):
        wanted = run(Union, None, *case)
        for result in ranks:
            torch.testing.assert_close(result[i], wanted, rtol=1e-12, atol=1e-12)
        assert identical(ranks[0][i][1:], ranks[1][i][1:])
        files = {path.parent.name for path in (tmp_path / str(i)).rglob("*.pt")}
        assert files == (set() if case[0] == "whole" else {"process_0", "process_1"})


def interrupted(folder, case, kill, rank):
    """Return a run's results and how many segments it has differentiated; one rank may be killed.

    Args:
        folder, case: of the run.
        kill: rank, what in, and at which call; or `None`.
        rank: this one.
    """
    calls = {"adjoints": 0, "entries": 0}

    def counted(name, function):
        def replaced(*args, **kwargs):
            calls[name] += 1
            if kill == (distributed.rank(), name, calls[name]):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return replaced

    passes.through_steps = counted("adjoints", passes.through_steps)
    journal.write_tensors = counted("entries", journal.write_tensors)
    return [run(Rows, folder, *case, steps=1), calls["adjoints"]]


KILLS = {
    "revolve": [(1, "entries", 2), (0, "adjoints", 5), (1, "entries", 1), (0, "adjoints", 2)],
    "segments": [(1, "entries", 2), (0, "adjoints", 2), (1, "entries", 1)],
}
"""One after the other; an entry of one process alone is not gone on from."""


@pytest.mark.parametrize(("schedule", "store"), [("revolve", "disk"), ("segments", "memory")])
def test_a_process_that_is_killed_is_made_up_for_to_the_bit(tmp_path, schedule, store):
    case = (schedule, store, "adamw")
    whole = spawn(partial(interrupted, None, case, None), tmp_path)
    folder = str(tmp_path / "run")
    for kill in KILLS[schedule]:
        with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
            spawn(partial(interrupted, folder, case, kill), tmp_path)
    ranks = spawn(partial(interrupted, folder, case, None), tmp_path)
    assert len(ranks) == RANKS
    for (result, left), (wanted, all_of_them) in zip(ranks, whole, strict=True):
        assert identical(result, wanted)
        assert left < all_of_them
