"""Modules of users, under every estimator: right, or refused with a way out."""

import pytest
import torch
from user_modules import KINDS, Regression, relative_error, second_order, whole_run

from metaopt.engine.inner_loop import InnerLoop
from metaopt.estimators import FiniteDifference, Forward, Identity, Implicit, OneStep, Sama, Unroll


def gradient(problem, estimator):
    loop = InnerLoop(problem)
    estimator.check(loop)
    outer = problem.init_outer(None)
    return estimator(loop, outer, loop.start(outer, None, 3), 3)[1].grad["weights"]


# What each estimator computes, without any estimator's code.
EXACT = {
    "unroll": (lambda: Unroll(3), lambda problem: whole_run(problem, 3)),
    "segments": (lambda: Unroll(3, segments=3), lambda problem: whole_run(problem, 3)),
    "forward": (lambda: Forward(3), lambda problem: whole_run(problem, 3)),
    "one_step": (lambda: OneStep(1), lambda problem: whole_run(problem, 1)),
    "implicit_identity": (lambda: Implicit(Identity()), lambda problem: second_order(problem, 1)),
    "finite_difference": (lambda: FiniteDifference(), lambda problem: second_order(problem, 1)),
    "sama": (
        lambda: Sama(),
        lambda problem: second_order(problem, 1) * problem.inner_optimizer.lr,
    ),
}


@pytest.mark.parametrize("estimator", EXACT)
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * ("compiled" in k)) for k in KINDS]
)
def test_equals_differences_without_an_estimator(kind, estimator):
    problem = Regression(KINDS[kind]())
    make, oracle = EXACT[estimator]
    assert relative_error(gradient(problem, make()), oracle(problem)) < 1e-6


@pytest.mark.parametrize("estimator", [Forward(2), Unroll(2)])
def test_a_transposed_outer_tensor_has_the_gradient_of_a_contiguous_one(estimator):
    grads = []
    for transposed in (False, True):
        problem = Regression(KINDS["in place"]())
        weights = torch.linspace(-1, 1, 6).view(2, 3)
        outer = {"weights": weights.T.contiguous().T if transposed else weights}
        problem.init_outer = lambda generator, outer=outer: outer
        grads.append(gradient(problem, estimator))
    assert torch.allclose(*grads, rtol=1e-12, atol=0)
