"""The reverse pass: what it carries, how many steps it takes, and the memory that it holds."""

import math

import pytest
import torch
from cases import Classification, relative_error
from combined import COMPLICATIONS, OPTIMIZERS, Averaged
from combined import problem as combined

from metaopt.engine import tree
from metaopt.engine.engine import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import AdamW
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.estimators.reverse import adjoints
from metaopt.estimators.reverse.schedules import forward_steps
from metaopt.optimizers import Descent
from metaopt.testing.meter import PeakMemory
from metaopt.testing.trees import identical

STEPS = 6


def run(problem, unroll, loop=None):
    loop = loop or InnerLoop(problem)
    outer = problem.init_outer(generator(0))
    return unroll(loop, outer, loop.start(outer, None, 3), 3)


class Counting(InnerLoop):
    """Counts the steps in place."""

    taken = 0

    def step_(self, *args, **kwargs):
        self.taken += 1
        return super().step_(*args, **kwargs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("complication", COMPLICATIONS)
def test_one_step_as_a_product_equals_the_graph_of_the_step(optimizer, complication):
    problem = combined(optimizer, complication)
    loop, phi = InnerLoop(problem), tree.leaves(problem.init_outer(generator(0)))
    inner = loop.run(phi, loop.start(phi, None, 3), 3, 2)
    draw = generator(1)
    adjoint = [
        torch.randn(t.shape, generator=draw, dtype=t.dtype) for t in loop.differentiated(inner)
    ]
    with twice_differentiable():
        start, end = adjoints.graph(loop, phi, inner, 3, range(2, 3))
        expected = adjoints.pull_back(
            loop.differentiated(end), adjoint, phi, loop.differentiated(start)
        )
        product = adjoints.through_step(loop, phi, inner, 3, 2, adjoint)
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["momentum", "AdamW"])
@pytest.mark.parametrize("complication", ["BatchNorm", "average", "rates", "direct", "dropout"])
@pytest.mark.parametrize("fork", [False, True])
def test_schedules_carry_what_the_whole_graph_does(optimizer, complication, fork):
    problem = combined(optimizer, complication, fork)
    end, whole = run(problem, Unroll(STEPS, schedule="whole"))
    for settings in ({"segments": 2}, {"segments": STEPS}, {"schedule": "revolve", "snapshots": 2}):
        other, parts = run(problem, Unroll(STEPS, **settings))
        assert relative_error(parts.grad, whole.grad) < 1e-13
        assert torch.equal(parts.value, whole.value)
        assert identical(end, other)


@pytest.mark.parametrize("optimizer", ["momentum", "AdamW"])
def test_schedules_agree_on_a_truncated_run(optimizer):
    problem = combined(optimizer, "BatchNorm")
    end, whole = run(problem, Unroll(STEPS, truncation=4, schedule="whole"))
    for settings in ({"segments": 2}, {"schedule": "revolve", "snapshots": 2}):
        other, parts = run(problem, Unroll(STEPS, truncation=4, **settings))
        assert relative_error(parts.grad, whole.grad) < 1e-13
        assert identical(end, other)


@pytest.mark.parametrize(
    "unroll",
    [
        Unroll(24, schedule="revolve", snapshots=3),
        Unroll(24, truncation=16, schedule="revolve", snapshots=3),
        Unroll(24, segments=5),
        Unroll(24, truncation=16, segments=5),
        Unroll(24, schedule="whole"),
    ],
)
def test_the_steps_that_are_charged_are_those_that_are_taken(unroll):
    problem = combined("SGD with decay", "direct")
    loop = Counting(problem)
    _, feedback = run(problem, unroll, loop)
    # Beside the steps in place: one gradient in each step that is differentiated, and that of F.
    assert feedback.cost["gradients"] == loop.taken + unroll.truncation + 1
    steps = range(24 - unroll.truncation, 24)
    rerun = forward_steps(unroll._schedule(loop, steps)[0], steps)
    assert loop.taken == steps.start + rerun


def peak(problem, unroll):
    loop = InnerLoop(problem)
    run(problem, Unroll(1), loop)
    with PeakMemory() as meter:
        run(problem, unroll, loop)
    return meter.peak


@pytest.mark.slow
def test_the_memory_of_revolve_does_not_grow_with_the_run():
    problem = Classification(inner_optimizer=AdamW(lr=0.01, clip_norm=0.1))
    short, long = (peak(problem, Unroll(k, schedule="revolve", snapshots=3)) for k in (10, 30))
    assert long <= 1.01 * short
    assert long < 0.4 * peak(problem, Unroll(30, schedule="whole"))


def test_one_estimator_leaves_what_it_is_given():
    problem = combined("momentum", "BatchNorm")
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    inner = loop.start(outer, None, 3)
    before = tree.clone(inner)
    for settings in ({"segments": 3}, {"schedule": "revolve", "snapshots": 2}):
        Unroll(STEPS, **settings)(loop, outer, inner, 3)
        assert identical(before, inner)


def test_the_growth_of_an_adjoint_that_starts_at_zero_is_not_a_number():
    class AverageAlone(Averaged):
        def outer_loss(self, outer, inner, batch):
            return sum((t**2).sum() for t in tree.tensors(inner.state))

    problem = AverageAlone("SGD with decay", "dropout")
    for unroll in (Unroll(6), Unroll(6, schedule="revolve", snapshots=2)):
        *_, (_, feedback) = Engine(problem, unroll, Descent(), outer_steps=2)
        assert math.isnan(feedback.metrics["inner/adjoint_growth"])
        assert feedback.metrics["outer/grad_norm"] > 0
