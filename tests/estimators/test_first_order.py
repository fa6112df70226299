"""FirstOrder against meta-learning of linear regression, in closed form."""

import pytest
import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import FirstOrder, Forward, OneStep, Score, Unroll
from metaopt.problems.examples import Quadratic


class Adaptation(GradientProblem):
    """Adapt weights to a task from an initial value phi; g and F are half mean squared errors."""

    warm_start = False

    def __init__(self, lr=0.1, pull=0.0):
        draw = torch.Generator().manual_seed(0)
        self.inner_optimizer, self.lr, self.pull = SGD(lr=lr), lr, pull
        self.support, self.query = (
            (
                torch.randn(12, 4, generator=draw, dtype=torch.float64),
                torch.randn(12, generator=draw, dtype=torch.float64),
            )
            for _ in range(2)
        )

    def init_outer(self, generator):
        return {"weight": torch.linspace(-1, 1, 4, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in outer.items()}

    def inner_batch(self, draw):
        return self.support

    def outer_batch(self, draw):
        return self.query

    def inner_loss(self, outer, inner, batch):
        return ((batch[0] @ inner["weight"] - batch[1]) ** 2).mean() / 2

    def outer_loss(self, outer, inner, batch):
        return self.inner_loss(outer, inner, batch) + self.pull * (outer["weight"] ** 2).sum() / 2

    def adapted(self, phi, steps):
        (x, y), theta = self.support, phi
        for _ in range(steps):
            theta = theta - self.lr * x.T @ (x @ theta - y) / len(x)
        return theta


def test_differs_from_the_full_derivative_by_the_hessian_term():
    problem = Adaptation()
    outer = problem.init_outer(None)
    _, feedback = FirstOrder(1)(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0
    )
    phi = outer["weight"].clone().requires_grad_()
    value = problem.outer_loss(outer, {"weight": problem.adapted(phi, 1)}, problem.query)
    (maml,) = torch.autograd.grad(value, [phi])
    x = problem.support[0]
    v, hessian = feedback.grad["weight"], x.T @ x / len(x)
    torch.testing.assert_close(maml, v - problem.lr * hessian @ v, rtol=1e-12, atol=1e-12)
    assert torch.linalg.vector_norm(maml - v) > 0.01


@pytest.mark.parametrize(("steps", "segments"), [(1, 1), (5, 1), (5, 2)])
def test_unroll_from_a_fork_is_maml(steps, segments):
    problem = Adaptation(pull=0.3)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    _, feedback = Unroll(steps, segments=segments)(InnerLoop(problem), outer, inner, 0)
    phi = outer["weight"].clone().requires_grad_()
    theta = {"weight": problem.adapted(phi, steps)}
    value = problem.outer_loss({"weight": phi}, theta, problem.query)
    (maml,) = torch.autograd.grad(value, [phi])
    torch.testing.assert_close(feedback.grad["weight"], maml, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5])
def test_forward_from_a_fork_is_maml(steps):
    problem = Adaptation(pull=0.3)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    _, exact = Unroll(steps)(InnerLoop(problem), outer, tree.clone(inner), 0)
    _, feedback = Forward(steps)(InnerLoop(problem), outer, tree.clone(inner), 0)
    torch.testing.assert_close(feedback.grad, exact.grad, rtol=1e-12, atol=1e-14)


def test_one_step_refuses_a_fork():
    with pytest.raises(ValueError, match="estimator=unroll, forward or first_order"):
        OneStep().check(InnerLoop(Adaptation()))


@pytest.mark.parametrize("steps", [1, 5])
def test_equals_the_outer_gradient_at_the_adapted_weights(steps):
    problem = Adaptation(pull=0.3)
    outer = problem.init_outer(None)
    inner, feedback = FirstOrder(steps)(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0
    )
    theta, (x, y) = problem.adapted(outer["weight"], steps), problem.query
    expected = x.T @ (x @ theta - y) / len(x) + 0.3 * outer["weight"]
    torch.testing.assert_close(feedback.grad["weight"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inner.params["weight"], theta, rtol=1e-12, atol=1e-12)
    assert not feedback.grad["weight"].requires_grad


def test_outer_keys_beyond_the_copy_get_the_direct_term():
    class Extended(Adaptation):
        def init_outer(self, generator):
            return super().init_outer(generator) | {"shift": torch.ones((), dtype=torch.float64)}

        def init_params(self, outer, generator):
            return {"weight": outer["weight"].clone()}

        def outer_loss(self, outer, inner, batch):
            return super().outer_loss(outer, inner, batch) + 3 * outer["shift"]

    problem = Extended()
    outer = problem.init_outer(None)
    _, feedback = FirstOrder()(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0
    )
    assert feedback.grad["shift"] == 3


def test_a_warm_start_is_refused():
    with pytest.raises(ValueError, match="warm_start"):
        FirstOrder().check(InnerLoop(Quadratic()))


def test_names_that_do_not_match_are_refused():
    class Renamed(Adaptation):
        def init_params(self, outer, generator):
            return {"other": outer["weight"].clone()}

    with pytest.raises(TypeError, match=r"'other'.*nothing of that name"):
        FirstOrder().check(InnerLoop(Renamed()))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="inner_steps"):
        FirstOrder(inner_steps=-1)


def test_a_start_at_another_value_than_phi_is_refused():
    class Scaled(Adaptation):
        def init_params(self, outer, generator):
            return {k: -3 * v for k, v in outer.items()}

    with pytest.raises(ValueError, match="theta_0 must equal phi"):
        FirstOrder().check(InnerLoop(Scaled()))


def test_a_start_that_is_phi_itself_leaves_phi_alone():
    class Aliased(Adaptation):
        def init_params(self, outer, generator):
            return dict(outer)

    outer = Aliased().init_outer(None)
    for estimator in (FirstOrder(3), Score(3), Unroll(3)):
        loop = InnerLoop(Aliased())
        estimator(loop, outer, loop.start(outer, None, 0), 0)
        assert torch.equal(outer["weight"], Aliased().init_outer(None)["weight"])
