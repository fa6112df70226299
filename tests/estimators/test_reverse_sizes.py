"""Which schedule fits a memory budget."""

import math

import pytest
import torch
from cases import Classification

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.estimators.reverse.schedules import Revolve, Segments
from metaopt.estimators.reverse.sizes import Sizes, fitting, sizes
from metaopt.testing.meter import PeakMemory

STEPS = range(100)
SIZE = Sizes(state=10, step=90)


def chosen(size, budget, disk=False):
    return fitting(size, STEPS, budget, size.segments(100), 20, disk)


def test_the_whole_graph_is_kept_where_it_fits():
    assert chosen(SIZE, 100 * 90 + 10 + 90 + 20) == (Segments(STEPS, 1), False)
    assert chosen(SIZE, 100 * 90 + 10 + 90 + 19) == (Segments(STEPS, 30), False)
    assert chosen(SIZE, None) == (Segments(STEPS, 1), False)


def test_segments_are_next_and_their_number_makes_the_least_peak():
    expected = Segments(STEPS, 30)  # sqrt(100 * 90 / 10)
    assert chosen(SIZE, 1000) == (expected, False)
    assert chosen(Sizes(10 * 2**20, 90 * 2**20), None) == (expected, False)
    assert chosen(SIZE, 600, disk=True) == (expected, True)
    peaks = [SIZE.segmented(100, s, s) for s in range(1, 101)]
    assert SIZE.segmented(100, 30, 30) <= 1.1 * min(peaks)  # but for rounding


def test_as_many_snapshots_as_fit_are_last():
    assert chosen(SIZE, 500) == (Revolve(29), False)  # 500 - 2 * 90 - 2 * 10 and one more
    assert chosen(SIZE, 225) == (Revolve(20), True)
    assert chosen(SIZE, 225, disk=True) == (Revolve(20), True)
    with pytest.raises(
        ValueError, match=r"at least 220 bytes for 100 steps; memory_budget is 200 bytes"
    ):
        chosen(SIZE, 200)


@pytest.mark.parametrize(("step", "count"), [(1, 10), (10_000, 100), (0.001, 1)])
def test_the_number_of_segments_is_clipped(step, count):
    assert Sizes(state=1, step=step).segments(100) == count


@pytest.mark.slow
@pytest.mark.parametrize("outer_rows", [1, 40])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01)])
def test_a_budget_is_an_upper_bound(optimizer, outer_rows):
    # Large enough for the states of random generators, 5 KiB each, to make no difference.
    problem = Classification(hidden=64, batch_norm=True, inner_optimizer=optimizer)
    problem.data[1] = [torch.cat([t] * outer_rows) for t in problem.data[1]]
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    Unroll(1)(loop, outer, loop.start(outer, None, 0), 0)
    size, kinds = sizes(loop), set()
    budgets = [size.step + size.product + n * size.state for n in (2, 5, 9, 30)]
    for budget in (*budgets, size.whole(12)):
        unroll = Unroll(12, memory_budget=budget)
        unroll.check(loop)
        with PeakMemory() as meter:
            unroll(loop, outer, loop.start(outer, None, 0), 0)
        assert meter.peak <= budget
        schedule = unroll._schedule(loop, range(12))[0]
        kinds.add(type(schedule))
    assert kinds == {Segments, Revolve}
    assert schedule == Segments(range(12), 1)


def test_sizes_are_those_of_the_first_outer_step_wherever_they_are_measured():
    class Growing(Classification):
        def inner_batch(self, draw):
            batch = super().inner_batch(draw)
            return tree.map_tensors(
                lambda t: torch.cat([t] * (1 + draw.outer_step + draw.task_index)), batch
            )

    found = []
    for outer_step, task_index in ((0, 0), (0, 0), (3, 0), (0, 2)):
        loop = InnerLoop(Growing(hidden=8))
        loop.outer_step, loop.task_index = outer_step, task_index
        found.append(sizes(loop))
        assert (loop.outer_step, loop.task_index) == (outer_step, task_index)
    assert found == [found[0]] * 4


def test_a_budget_that_is_too_small_is_refused_before_the_run():
    with pytest.raises(ValueError, match="Raise it, make batches smaller"):
        Unroll(16, memory_budget=10.0).check(InnerLoop(Classification()))


def test_segments_have_at_most_the_peak_of_the_root():
    problem = Classification(hidden=8, rows=256, inner_optimizer=SGD(lr=0.1))
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))

    def peak(unroll):
        with PeakMemory() as meter:
            unroll(loop, outer, loop.start(outer, None, 0), 0)
        return meter.peak

    assert sizes(loop).segments(16) > math.isqrt(16)
    assert peak(Unroll(16, schedule="segments")) < 0.6 * peak(Unroll(16, segments=4))
