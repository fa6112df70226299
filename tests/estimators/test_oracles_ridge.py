"""Every hypergradient that has a limit, against the closed form of ridge regression."""

from __future__ import annotations

import pytest
import torch

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    FiniteDifference,
    Identity,
    Implicit,
    Neumann,
    OneStep,
    Unroll,
)
from metaopt.problems.examples import Ridge

RATE = 0.8


@pytest.fixture(scope="module")
def solved():
    """Return the problem, phi, and the inner solution in a state that SGD does not move."""
    problem = Ridge(inner_optimizer=SGD(lr=RATE))
    phi = problem.init_outer(generator(0))
    inner = InnerLoop(problem).start(phi, None, 0)
    inner.params["weight"].copy_(problem.solve(phi))
    return problem, phi, inner


def gradient(estimator, solved):
    problem, phi, inner = solved
    return estimator(InnerLoop(problem), phi, tree.clone(inner), 0)[1].grad["log_penalty"]


def error(estimate, exact):
    return float((estimate - exact).norm() / exact.norm())


def test_the_condition_number_is_that_of_the_papers(solved):
    problem, phi, _ = solved
    assert float(torch.linalg.cond(problem.hessian(phi))) == pytest.approx(28, abs=1)


def test_the_closed_form_is_the_derivative_of_the_solved_problem(solved):
    problem, phi, _ = solved
    x, y = problem.validation
    rho = phi["log_penalty"].clone().requires_grad_()
    loss = ((x @ problem.solve({"log_penalty": rho}) - y) ** 2).mean() / 2
    (exact,) = torch.autograd.grad(loss, rho)
    assert error(problem.hypergradient(phi)["log_penalty"], exact) < 1e-12


def test_descent_reaches_the_solution(solved):
    problem, phi, _ = solved
    inner = InnerLoop(problem).run(phi, InnerLoop(problem).start(phi, None, 0), 0, 650)
    assert error(inner.params["weight"], problem.solve(phi)) < 1e-9


@pytest.mark.parametrize(
    ("estimator", "bound"),
    [
        (Unroll(650, schedule="segments"), 1e-10),
        (Implicit(Exact()), 1e-12),
        (Implicit(ConjugateGradient(100, damping=0.0, tolerance=1e-14)), 1e-10),
        (Implicit(Neumann(250, step=RATE)), 1e-3),
        (Implicit(Neumann(2000)), 1e-10),
        (Implicit(), 0.1),
    ],
    ids=["unroll", "exact", "cg", "neumann", "neumann, own step", "default"],
)
def test_converged_estimators_reach_the_closed_form(solved, estimator, bound):
    exact = solved[0].hypergradient(solved[1])["log_penalty"]
    assert error(gradient(estimator, solved), exact) < bound


@pytest.mark.parametrize("terms", [3, 30])
def test_a_truncated_series_leaves_out_what_the_powers_say(solved, terms):
    problem, phi, _ = solved
    hessian, identity = problem.hessian(phi), torch.eye(20, dtype=torch.float64)
    series = identity - torch.linalg.matrix_power(identity - RATE * hessian, terms)
    x, y = problem.validation
    theta = problem.solve(phi)
    q = series @ torch.linalg.solve(hessian, x.T @ (x @ theta - y) / len(x))
    exact = -phi["log_penalty"].exp() * theta * q
    assert error(gradient(Implicit(Neumann(terms, RATE)), solved), exact) < 1e-12


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_a_warm_unroll_is_the_neumann_series_to_the_last_digits(solved, steps):
    unrolled = gradient(Unroll(steps), solved)
    assert error(gradient(Implicit(Neumann(steps, RATE)), solved), unrolled) < 1e-12


def test_one_step_is_the_learning_rate_times_t1_t2(solved):
    identity = gradient(Implicit(Identity()), solved)
    assert error(gradient(OneStep(), solved), RATE * identity) < 1e-12
    assert error(gradient(FiniteDifference(), solved), identity) < 1e-7


def test_the_identity_is_biased_and_says_how_much(solved):
    exact = solved[0].hypergradient(solved[1])["log_penalty"]
    cosine = torch.nn.functional.cosine_similarity(
        gradient(Implicit(Identity()), solved), exact, dim=0
    )
    assert float(cosine) == pytest.approx(0.6056, abs=1e-3)
