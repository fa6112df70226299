"""Ridge regression: penalties up to a limit."""

import math

import pytest
import torch

import metaopt
from metaopt.problems.examples import Ridge


@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_closed_form_is_the_gradient_through_the_solution(limit):
    problem = Ridge(features=6, max_penalty=limit)
    phi = torch.tensor([-9.0, -2.0, -0.7, 0.1, 2.0, 9.0], dtype=torch.float64)
    outer = {"log_penalty": phi.requires_grad_()}
    loss = problem.outer_loss(outer, {"weight": problem.solve(outer)}, problem.validation)
    (slope,) = torch.autograd.grad(loss, phi)
    closed = problem.hypergradient(outer)["log_penalty"]
    torch.testing.assert_close(closed, slope, rtol=1e-9, atol=1e-15)
    beyond = phi > (math.inf if limit is None else math.log(limit))
    assert torch.equal(closed == 0, beyond)


@pytest.mark.parametrize(("limit", "diverges"), [(10.0, False), (None, True)])
def test_a_long_run_stays_stable_below_the_limit(limit, diverges):
    problem, optimizer = Ridge(seed=3, max_penalty=limit), metaopt.Descent("adam", lr=0.03)
    result = metaopt.run(problem, metaopt.Unroll(5), optimizer, 300, progress=False)
    assert (result.metrics["eval/test_loss"] > 1e6) == diverges
    largest = float(result.outer["log_penalty"].max())
    assert largest > math.log(10)  # where the limit is reached


@pytest.mark.parametrize("limit", [0.0085, 0.001, -1.0])
def test_a_limit_that_the_first_penalty_reaches_is_refused(limit):
    with pytest.raises(ValueError, match="max_penalty"):
        Ridge(max_penalty=limit)
