"""The non-convex toy against autograd through y = -x, and what its solvers reach."""

import pytest
import torch

from metaopt.engine import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators import Implicit, Penalty, Unroll
from metaopt.optimizers import Descent
from metaopt.problems.examples import ValueFunctionToy

PROBLEM = ValueFunctionToy()


@pytest.mark.parametrize("x", [0.0, 0.3, 1.4, 3.0])
def test_the_closed_form_equals_autograd_through_the_solution(x):
    outer = {"x": torch.tensor([x], dtype=torch.float64, requires_grad=True)}
    value = PROBLEM.outer_loss(outer, {"y": -outer["x"]}, None)
    (grad,) = torch.autograd.grad(value, [outer["x"]])
    torch.testing.assert_close(PROBLEM.hypergradient(outer)["x"], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("x", [0.2, 1.5, 2.9])
def test_the_inner_solution_is_the_only_stationary_point(x):
    outer = {"x": torch.tensor([x], dtype=torch.float64)}
    y = torch.linspace(-8, 8, 4001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(PROBLEM.inner_loss(outer, {"y": y}, None), [y])
    assert torch.equal(slope > 0, y > -x)
    assert (slope.diff() < 0).any() == (x > 1)  # not convex


def test_implicit_at_the_solution_is_the_closed_form():
    outer = {"x": torch.tensor([0.7], dtype=torch.float64)}
    inner = InnerLoop(PROBLEM).start(outer, None, 0)
    inner = inner._replace(params={"y": -outer["x"]})
    _, feedback = Implicit(inner_steps=0)(InnerLoop(PROBLEM), outer, inner, 0)
    # The default damping is a thousandth.
    torch.testing.assert_close(
        feedback.grad["x"], PROBLEM.hypergradient(outer)["x"], rtol=2e-3, atol=0.0
    )


ESTIMATORS = {
    "implicit": (lambda: Implicit(inner_steps=5), 1e-3),
    "unroll": (lambda: Unroll(5), 0.1),
    "penalty": (lambda: Penalty(100.0, 10.0, inner_steps=5), 0.1),
}
MINIMA = torch.tensor([0.38, 1.22, 2.83])


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_local_minimum_of_the_value_function_is_reached_from_each_start(name):
    make, slope = ESTIMATORS[name]
    for seed in range(2):
        engine = Engine(PROBLEM, make(), Descent(lr=0.02), outer_steps=150, seed=seed)
        assert len(list(engine)) == 150
        metrics = engine.metrics()
        assert metrics["eval/slope"] < slope
        assert (MINIMA - metrics["eval/x"]).abs().min() < 0.02


def test_starts_differ_by_seed():
    starts = [float(PROBLEM.init_outer(generator(seed))["x"]) for seed in range(20)]
    assert 0 < min(starts) < 1 < 2 < max(starts) < 3
