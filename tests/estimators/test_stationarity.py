"""Implicit estimators with weight decay in the inner optimizer: they solve for g plus decay."""

from itertools import pairwise

import pytest
import torch

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW, NormalizedSGD
from metaopt.engine.random import generator
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    FiniteDifference,
    Identity,
    Implicit,
    Neumann,
    Nystrom,
    Penalty,
    Soba,
)
from metaopt.problems.examples import Ridge

GROUPS = [{"match": "weight", "weight_decay": 0.3}]
SOLVERS = {
    "exact": Exact(),
    "cg": ConjugateGradient(iterations=60, tolerance=1e-12, damping=0.0),
    "neumann": Neumann(900, step=0.6),
}


def closed_form(problem, decay):
    """Return theta* and dF/dphi of min g + (decay / 2) |theta|^2, through torch.linalg.solve."""
    (x, y), (xv, yv) = problem.train, problem.validation
    rho = problem.init_outer(generator(0))["log_penalty"].requires_grad_()
    hessian = x.T @ x / len(x) + torch.diag(rho.exp() + decay)
    theta = torch.linalg.solve(hessian, x.T @ y / len(x))
    loss = ((xv @ theta - yv) ** 2).mean() / 2
    return theta.detach(), torch.autograd.grad(loss, rho)[0]


def converged(optimizer, decay):
    """Return a problem whose inner state is where `optimizer` converges, and the derivative."""
    problem = Ridge(inner_optimizer=optimizer)
    theta, wanted = closed_form(problem, decay)
    outer = problem.init_outer(generator(0))
    inner = InnerLoop(problem).start(outer, None, 0)
    inner.params["weight"].copy_(theta)
    return problem, outer, inner, wanted


def error(grad, wanted):
    return float((grad["log_penalty"] - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("optimizer", "decay"),
    [
        (SGD(lr=0.1, weight_decay=0.2), 0.2),
        (SGD(lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True, clip_norm=1e3), 0.2),
        (SGD(lr=0.1, groups=GROUPS), 0.3),
        (Adam(lr=0.1, weight_decay=0.2), 0.2),
        (AdamW(lr=0.1, weight_decay=0.0), 0.0),
    ],
    ids=["sgd", "nesterov", "groups", "adam", "adamw without decay"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solve_is_right_with_decay(optimizer, decay, solver):
    problem, outer, inner, wanted = converged(optimizer, decay)
    estimator = Implicit(SOLVERS[solver], inner_steps=0)
    _, feedback = estimator(InnerLoop(problem), outer, inner, 0)
    assert error(feedback.grad, wanted) < 1e-8


def test_sgd_converges_there():
    problem, outer, inner, _ = converged(SGD(lr=0.1, weight_decay=0.2), 0.2)
    before = inner.params["weight"].clone()
    after = InnerLoop(problem).run(outer, inner, 0, 1).params["weight"]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-13)


def test_soba_converges_to_it():
    problem, outer, inner, wanted = converged(SGD(lr=0.6, weight_decay=0.2), 0.2)
    estimator, loop = Soba(), InnerLoop(problem)
    for key in range(400):
        inner, feedback = estimator(loop, outer, inner, key)
    assert error(feedback.grad, wanted) < 1e-8


@pytest.mark.slow
def test_the_error_of_a_penalty_is_one_over_its_strength():
    errors = []
    for strength in (10.0, 100.0, 1000.0):
        problem, outer, inner, wanted = converged(SGD(lr=0.6, weight_decay=0.2), 0.2)
        estimator, loop = Penalty(strength, initial=strength, inner_steps=250), InnerLoop(problem)
        errors.append(error(estimator(loop, outer, inner, 0)[1].grad, wanted))
    assert errors[0] < 0.1
    assert all(7 < a / b < 13 for a, b in pairwise(errors)), errors


@pytest.mark.parametrize("estimator", [Implicit(), Implicit(Neumann()), Soba(), Penalty()])
def test_decoupled_decay_and_steps_of_one_length_are_refused(estimator):
    for optimizer, reason in (
        (AdamW(lr=0.1, weight_decay=0.1), "no stationary point .* use Adam"),
        (AdamW(lr=0.1, weight_decay=0.0, groups=GROUPS), "no stationary point"),
        (NormalizedSGD(lr=0.1), "do not converge"),
    ):
        with pytest.raises(ValueError, match=reason):
            estimator.check(InnerLoop(Ridge(inner_optimizer=optimizer)))


def test_an_estimator_without_a_solve_accepts_them():
    loop = InnerLoop(Ridge(inner_optimizer=AdamW(lr=0.1, weight_decay=0.1)))
    for estimator in (Implicit(Identity()), FiniteDifference()):
        estimator.check(loop)


def test_clipping_with_decay_is_refused_where_it_is_active():
    optimizer = SGD(lr=0.1, weight_decay=0.2, clip_norm=1e-6)
    problem, outer, inner, _ = converged(optimizer, 0.2)
    with pytest.raises(ValueError, match="clip_norm=1e-06 is active"):
        Implicit()(InnerLoop(problem), outer, inner, 0)
    # Without decay a clipped step is zero where the gradient is.
    optimizer = SGD(lr=0.1, clip_norm=1e-6)
    problem, outer, inner, wanted = converged(optimizer, 0.0)
    grad = Implicit(Exact(), inner_steps=0)(InnerLoop(problem), outer, tree.clone(inner), 0)[1].grad
    assert error(grad, wanted) < 1e-8


def test_a_singular_system_is_refused_with_advice():
    class Shifted(Ridge):
        def inner_loss(self, outer, inner, batch):
            return (inner["weight"][:2].sum() - outer["log_penalty"].sum()) ** 2

    problem = Shifted()
    outer, loop = problem.init_outer(generator(0)), InnerLoop(problem)
    with pytest.raises(ValueError, match=r"Hessian of the inner loss is singular .*damping > 0"):
        Implicit(Exact(), inner_steps=0)(loop, outer, loop.start(outer, None, 0), 0)


def test_a_sketch_of_a_singular_system_is_finite_without_damping():
    weights = torch.tensor([3.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    solver = ConjugateGradient(damping=0.0, preconditioner=Nystrom(rank=4))
    v = {"weight": torch.ones(4, dtype=torch.float64) * (weights > 0)}
    q, _, _ = solver(lambda p: {"weight": weights * p["weight"]}, v, {}, 0)
    torch.testing.assert_close(q["weight"][:2], 1 / weights[:2], rtol=1e-3, atol=0)


def test_a_group_that_never_moves_is_refused_in_a_solve():
    optimizer = SGD(lr=0.1, groups=[{"match": "weight", "lr": 0.0}])
    loop = InnerLoop(Ridge(inner_optimizer=optimizer))
    Implicit().check(loop)  # nothing moves, so nothing is solved for in vain
    stationary = optimizer.stationary_gradient
    zeros = {"weight": torch.zeros(2), "bias": torch.zeros(2)}
    with pytest.raises(ValueError, match="a group with lr=0 never moves"):
        stationary(zeros, zeros)
