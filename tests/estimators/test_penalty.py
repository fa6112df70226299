"""Penalty against the closed form of the quadratic, and its own fixed point."""

import pytest
import torch
from cases import Classification, cosine, relative_error

from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import NonFiniteError
from metaopt.engine.schedules import Cosine, PowerDecay
from metaopt.estimators import Identity, Implicit, Penalty
from metaopt.optimizers import Descent
from metaopt.problems.examples import Quadratic


def settled(problem, outer, strength, calls=5):
    """Return the last feedback of calls long enough for both copies to converge."""
    estimator = Penalty(strength, initial=strength, inner_steps=60)
    inner = InnerLoop(problem).start(outer, None, 0)
    for key in range(calls):
        inner, feedback = estimator(InnerLoop(problem), outer, inner, key)
    return inner, feedback


def outer_of(problem):
    return {"phi": torch.linspace(-1, 1, problem.coupling.shape[1], dtype=torch.float64)}


@pytest.mark.parametrize("strength", [1.0, 100.0])
def test_equals_the_gradient_of_the_penalised_value(strength):
    """min_y F + gamma (g - min g) has the gradient of F at y and of g at y and at z."""
    problem = Quadratic()
    outer = outer_of(problem)
    eye = torch.eye(len(problem.target), dtype=torch.float64)
    z = problem.solve(outer)
    y = torch.linalg.solve(
        eye + strength * problem.curvature, problem.target + strength * problem.curvature @ z
    )
    expected = problem.rho * outer["phi"] - strength * problem.coupling.T @ (y - z)
    inner, feedback = settled(problem, outer, strength)
    assert relative_error(feedback.grad, {"phi": expected}) < 1e-9
    torch.testing.assert_close(inner.params["theta"], z)


@pytest.mark.slow
def test_error_falls_as_one_over_the_strength():
    problem = Quadratic()
    outer = outer_of(problem)
    exact = problem.hypergradient(outer)
    errors = [relative_error(settled(problem, outer, s)[1].grad, exact) for s in (100, 1000, 1e4)]
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


@pytest.mark.slow
def test_descends_to_the_optimum():
    problem = Quadratic()
    estimator, outer = Penalty(1000.0, initial=10.0, inner_steps=5), problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    for key in range(200):
        inner, feedback = estimator(InnerLoop(problem), outer, inner, key)
        outer = tree.add(outer, feedback.grad, -0.02)
    assert relative_error(outer, problem.optimum()) < 5e-3


def test_strength_grows_from_its_initial_value_to_its_limit():
    problem = Quadratic()
    estimator, outer = Penalty(0.2, initial=0.1, growth=1.5), problem.init_outer(None)
    inner, strengths = InnerLoop(problem).start(outer, None, 0), []
    for key in range(3):
        inner, feedback = estimator(InnerLoop(problem), outer, inner, key)
        strengths.append(feedback.metrics["outer/penalty"])
    assert strengths == pytest.approx([0.1, 0.15, 0.2])


def test_resumes_to_the_bit():
    problem = Classification(batch_norm=True, dropout=0.1)
    outer = problem.init_outer(None)
    one, two = Penalty(), Penalty()
    inner, _ = one(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0)
    two.load_state_dict(tree.clone(one.state_dict()))
    _, expected = one(InnerLoop(problem), outer, tree.clone(inner), 1)
    _, feedback = two(InnerLoop(problem), outer, inner, 1)
    assert torch.equal(feedback.grad["weights"], expected.grad["weights"])


@pytest.mark.parametrize(
    "settings",
    [{"frozen": True, "tied": True, "unused": True, "batch_norm": True}, {"pattern": "net"}],
)
def test_points_the_right_way_on_networks(settings):
    problem = Classification(**settings)
    outer = problem.init_outer(None)
    estimator, inner = (
        Penalty(1.0, initial=1.0, inner_steps=20),
        InnerLoop(problem).start(outer, None, 0),
    )
    inner, feedback = estimator(InnerLoop(problem), outer, inner, 0)
    _, reference = Implicit(Identity(), inner_steps=0)(
        InnerLoop(problem), outer, tree.clone(inner), 0
    )
    assert cosine(feedback.grad, reference.grad) > 0.3
    if "norm.num_batches_tracked" in inner.buffers:
        assert inner.buffers["norm.num_batches_tracked"] == 20


def test_an_outer_variable_that_reaches_one_loss_only_gets_its_direct_term():
    problem = Classification(pattern="direct")
    outer = problem.init_outer(None)
    _, feedback = Penalty()(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0)
    assert feedback.grad["weights"].shape == (1,)
    assert feedback.grad["weights"] > 0


def test_a_copy_that_diverges_is_named():
    class Steep(Quadratic):
        def outer_loss(self, outer, inner, batch):
            return 1e3 * super().outer_loss(outer, inner, batch)

    engine = Engine(Steep(), Penalty(inner_steps=50), Descent("sgd", lr=1e-9), outer_steps=9)
    with pytest.raises(NonFiniteError, match=r"Penalty's copy y has diverged at gamma=0\.1"):
        list(engine)


def test_a_copy_schedule_may_end_at_zero():
    loop = InnerLoop(Quadratic())
    outer, estimator = outer_of(loop.problem), Penalty(2.0, 2.0, copy_schedule=Cosine(2))
    inner, copies = loop.start(outer, None, 0), []
    for loop.outer_step in range(4):
        inner, _ = estimator(loop, outer, inner, loop.outer_step)
        copies.append(estimator.state_dict()["copy"].params["theta"].clone())
    assert not torch.equal(copies[0], copies[1])
    assert torch.equal(copies[1], copies[3])  # a step of length 0


def test_a_copy_that_diverges_along_its_sum_is_told_to_lower_gamma():
    estimator = Penalty(None, 1e4, inner_steps=50, copy_schedule=PowerDecay(0.0))
    engine = Engine(Quadratic(), estimator, Descent("sgd", lr=1e-9), outer_steps=9)
    with pytest.raises(
        NonFiniteError, match=r"for F \+ gamma g: lower it, or lower estimator.init"
    ):
        list(engine)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"initial": 20.0}, "initial"), ({"growth": 0.9}, "growth"), ({"inner_steps": 0}, "inner")],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        Penalty(**settings)
