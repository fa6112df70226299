"""Odd modules, losses, states and optimizers: equal to differences of whole runs."""

import pytest
from odd_problems import PROBLEMS

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators import FiniteDifference, Forward, Implicit, Unroll
from metaopt.testing.differences import run_differences

STEPS, KEY = 4, 3
EXACT = {
    "unroll": Unroll(STEPS),
    "segments": Unroll(STEPS, segments=3),
    "revolve": Unroll(STEPS, schedule="revolve", snapshots=2),
    "disk": Unroll(STEPS, schedule="revolve", snapshots=2, store="disk"),
    "forward": Forward(STEPS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_derivative_through_a_run_equals_differences_of_it(name):
    loop = InnerLoop(PROBLEMS[name]())
    outer = loop.problem.init_outer(generator(0))
    inner = loop.start(outer, None, KEY)
    if loop.problem.warm_start:  # moments, buffers and a state that are not the first ones
        inner = loop.run(outer, inner, 5, 2)
    differences = run_differences(loop, outer, inner, KEY, STEPS, directions=1)
    assert differences.uncertainty < 1e-7
    for estimator in EXACT.values():
        grad = estimator(loop, outer, tree.clone(inner), KEY)[1].grad
        assert differences.distance(grad) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Implicit(), FiniteDifference()])
@pytest.mark.parametrize(
    "name", ["CumulativeNorm", "TrackedInstances", "OwnStatistics", "Averages", "Memory"]
)
def test_what_holds_state_and_buffers_fixed_refuses_them(name, estimator):
    with pytest.raises(ValueError, match=r"cannot carry the derivative of .*estimator=unroll"):
        estimator.check(InnerLoop(PROBLEMS[name]()))
