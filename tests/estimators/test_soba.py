"""Soba: one step is exact once the adjoint is, and the loop reaches the known solution."""

import pytest
import torch
from cases import Classification, relative_error

from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.protocols import NonFiniteError
from metaopt.estimators import Soba, Unroll
from metaopt.optimizers import Descent
from metaopt.problems.examples import Quadratic, Ridge


def loop(problem, estimator, steps, lr):
    outer = problem.init_outer(torch.Generator())
    inner = InnerLoop(problem).start(outer, None, 0)
    for key in range(steps):
        inner, feedback = estimator(InnerLoop(problem), outer, inner, key)
        outer = tree.add(outer, feedback.grad, -lr)
    return outer, inner, feedback


def test_is_exact_with_the_exact_adjoint_at_the_solution():
    problem = Quadratic()
    outer = {"phi": torch.linspace(-1, 1, 5, dtype=torch.float64)}
    theta = problem.solve(outer)
    inner = InnerLoop(problem).start(outer, None, 0)._replace(params={"theta": theta})
    estimator = Soba()
    q = torch.linalg.solve(problem.curvature, theta - problem.target)
    estimator.load_state_dict({"q": {"theta": q}})
    _, feedback = estimator(InnerLoop(problem), outer, inner, 0)
    assert relative_error(feedback.grad, problem.hypergradient(outer)) < 1e-12
    assert feedback.metrics["solve/residual"] < 1e-12


def test_converges_to_the_optimum_of_the_quadratic():
    problem = Quadratic(condition=3.0)
    outer, inner, _ = loop(problem, Soba(), 400, 0.05)
    assert relative_error(outer, problem.optimum()) < 1e-8
    assert relative_error(inner.params, {"theta": problem.solve(outer)}) < 1e-8


@pytest.mark.slow
def test_follows_the_hypergradient_of_ridge():
    problem = Ridge(inner_optimizer=SGD(lr=0.8))
    start = problem.init_outer(torch.Generator())
    outer, _, feedback = loop(problem, Soba(), 600, 0.05)
    assert relative_error(feedback.grad, problem.hypergradient(outer)) < 0.02
    assert feedback.value < problem.outer_loss(
        start, {"weight": problem.solve(start)}, problem.validation
    )


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01)])
@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.1, "batch_norm": True},
        {"frozen": True, "tied": True, "unused": True, "pattern": "net"},
    ],
)
def test_takes_the_same_inner_step_as_the_problem(optimizer, settings):
    problem = Classification(inner_optimizer=optimizer, **settings)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    expected = InnerLoop(problem).run(outer, tree.clone(inner), 5, 1)
    after, feedback = Soba(step=0.1)(InnerLoop(problem), outer, inner, 5)
    for name, value in (expected.params | expected.buffers).items():
        assert torch.equal(value, (after.params | after.buffers)[name])
    assert after.loss == expected.loss
    assert not any(t.requires_grad for t in [*after.params.values(), *feedback.grad.values()])


def test_an_outer_variable_that_reaches_one_loss_only_gets_its_direct_term():
    problem = Classification(pattern="direct")
    outer = problem.init_outer(None)
    estimator, inner = Soba(), InnerLoop(problem).start(outer, None, 0)
    for key in range(2):
        inner, feedback = estimator(InnerLoop(problem), outer, inner, key)
        assert feedback.grad["weights"] == pytest.approx(float(feedback.value), rel=1e-12)


def test_resumes_to_the_bit():
    problem = Classification()
    outer = problem.init_outer(None)
    one, two = Soba(), Soba()
    inner, _ = one(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0)
    two.load_state_dict(tree.clone(one.state_dict()))
    _, expected = one(InnerLoop(problem), outer, tree.clone(inner), 1)
    _, feedback = two(InnerLoop(problem), outer, inner, 1)
    assert tree.norm(expected.grad) > 0
    assert torch.equal(feedback.grad["weights"], expected.grad["weights"])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="step"):
        Soba(step=0.0)


@pytest.mark.parametrize(
    ("problem", "estimator", "cause"),
    [
        (Quadratic(), Soba(step=50.0), r"Soba's adjoint q .*\(step=50.0\); set estimator.step"),
        (Quadratic(inner_optimizer=SGD(lr=20.0)), Soba(step=0.01), "the inner level has diverged"),
        (Quadratic(inner_optimizer=SGD(lr=20.0)), Unroll(9), "learning rate of inner_optimizer"),
    ],
)
def test_a_divergence_names_the_step_that_was_too_large(problem, estimator, cause):
    engine = Engine(problem, estimator, Descent("sgd", lr=1e-9), outer_steps=500)
    with pytest.raises(NonFiniteError, match=cause):
        list(engine)
