"""A hypergradient for want of a path is refused, and one through theta_0 is right or refused."""

import pytest
import torch

from metaopt import SGD, GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.estimators import (
    Direct,
    EvolutionStrategies,
    Exact,
    FiniteDifference,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    Neumann,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)


class Adapted(GradientProblem):
    """MAML on a regression: theta_0 = phi, and g does not read phi otherwise."""

    warm_start = False
    inner_optimizer = SGD(lr=0.1)

    def __init__(self, proximal=0.0):
        draw = torch.Generator().manual_seed(0)
        self.proximal = proximal
        self.x, self.xv = torch.randn(2, 12, 4, generator=draw, dtype=torch.float64)
        self.target = torch.randn(4, generator=draw, dtype=torch.float64)

    def init_outer(self, generator):
        return {"w": torch.full((4,), 0.3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"w": outer["w"].clone()}

    def inner_batch(self, draw):
        return self.x

    def outer_batch(self, draw):
        return self.xv

    def inner_loss(self, outer, inner, batch):
        loss = self.distance(inner, batch)
        if self.proximal:
            loss = loss + self.proximal * ((inner["w"] - outer["w"]) ** 2).sum()
        return loss

    def outer_loss(self, outer, inner, batch):
        return self.distance(inner, batch)

    def distance(self, inner, batch):
        return ((batch @ (inner["w"] - self.target)) ** 2).mean()


class Plain(Adapted):
    """g reads phi through `read`; theta_0 does not."""

    warm_start = True

    def __init__(self, read, direct=False):
        super().__init__()
        self.read, self.direct = read, direct

    def init_params(self, outer, generator):
        return {"w": torch.zeros(4, dtype=torch.float64)}

    def inner_loss(self, outer, inner, batch):
        return self.distance(inner, batch) + self.read(outer["w"], inner["w"])

    def outer_loss(self, outer, inner, batch):
        direct = (outer["w"] ** 2).sum() if self.direct else 0.0
        return self.distance(inner, batch) + direct


def value(problem, outer, steps):
    """Return F after `steps` plain steps of gradient descent, by torch alone."""
    w = problem.init_params(outer, None)["w"]
    for _ in range(steps):
        w = w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.inner_loss(outer, {"w": w}, problem.x), w)
        w = w - 0.1 * slope
    return float(problem.outer_loss(outer, {"w": w.detach()}, problem.xv))


def differences(problem, steps, radius=1e-5):
    """Return central differences of the whole run."""
    outer, grad = problem.init_outer(None), torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        ends = [outer["w"].clone() for _ in range(2)]
        ends[0][i] += radius
        ends[1][i] -= radius
        up, down = (value(problem, {"w": end}, steps) for end in ends)
        grad[i] = (up - down) / (2 * radius)
    return grad


def hypergradient(problem, estimator):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    estimator.check(loop)
    return estimator(loop, outer, loop.start(outer, None, 0), 0)[1].grad["w"]


HOLDS_START = {
    "truncated unroll": Unroll(3, truncation=2),
    "one step": OneStep(3),
    "implicit": Implicit(inner_steps=3),
    "identity": Implicit(Identity(), inner_steps=3),
    "neumann": Implicit(Neumann(), inner_steps=3),
    "finite difference": FiniteDifference(inner_steps=3),
    "sama": Sama(inner_steps=3),
    "soba": Soba(),
    "penalty": Penalty(inner_steps=3),
    "direct": Direct(3),
}


@pytest.mark.parametrize("name", HOLDS_START)
def test_a_start_made_from_phi_is_refused_where_it_is_held_fixed(name):
    for problem in (Adapted(), Adapted(proximal=0.5)):
        with pytest.raises(ValueError, match=r"holds theta_0 fixed.*estimator=unroll"):
            HOLDS_START[name].check(InnerLoop(problem))


@pytest.mark.parametrize("estimator", [Unroll(3), Unroll(3, segments=2), Forward(3)])
@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_a_start_made_from_phi_is_differentiated(estimator, proximal):
    problem = Adapted(proximal)
    torch.testing.assert_close(
        hypergradient(problem, estimator), differences(problem, 3), rtol=1e-7, atol=1e-9
    )


def test_first_order_and_evolution_strategies_see_the_start():
    problem = Adapted()
    wanted = differences(problem, 3)
    assert torch.cosine_similarity(hypergradient(problem, FirstOrder(3)), wanted, 0) > 0.9
    # F is quadratic in phi, so the antithetic estimate is unbiased; its error falls with the pairs.
    estimate = hypergradient(problem, EvolutionStrategies(pairs=200, inner_steps=3))
    assert float((estimate - wanted).norm() / wanted.norm()) < 0.4


def test_imaml_is_accepted_where_the_solution_does_not_depend_on_the_start():
    problem = Adapted(proximal=0.5)
    solved = Implicit(Exact(), inner_steps=300, any_start=True)
    torch.testing.assert_close(
        hypergradient(problem, solved), differences(problem, 300), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("solver", [Exact(), Identity()], ids=["exact", "identity"])
def test_imaml_without_a_proximal_term_is_refused(solver, tasks):
    # The solution does not depend on phi, so that the implicit hypergradient would be exactly zero.
    estimator = Implicit(solver, 5, any_start=True, tasks=tasks)
    with pytest.raises(ValueError, match=r"would return 0: .* \(w \(4,\)\) to theta_0 of Adapted"):
        estimator.check(InnerLoop(Adapted(0.0)))
    estimator.check(InnerLoop(Adapted(0.5)))


CUTS = {
    "not read": lambda phi, theta: 0.0,
    "detached": lambda phi, theta: (phi.detach() * theta).sum(),
    "item": lambda phi, theta: theta.sum() * float(phi.detach().sum()),
    "no_grad": torch.no_grad()(lambda phi, theta: (phi * 2).sum()),
}
DIFFERENTIATES = {k: v for k, v in HOLDS_START.items() if k != "direct"} | {
    "unroll": Unroll(3),
    "forward": Forward(3),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", DIFFERENTIATES)
def test_losses_without_a_path_to_phi_are_refused(name, cut):
    problem = Plain(CUTS[cut])
    with pytest.raises(ValueError, match=r"would return 0: no derivative .*\(w \(4,\)\)"):
        DIFFERENTIATES[name].check(InnerLoop(problem))


@pytest.mark.parametrize("name", DIFFERENTIATES)
def test_a_derivative_of_zero_is_no_error(name):
    DIFFERENTIATES[name].check(InnerLoop(Plain(lambda phi, theta: 0.0 * (phi * theta).sum())))


@pytest.mark.parametrize("estimator", [Direct(3), Unroll(3), OneStep(3), Implicit(inner_steps=3)])
def test_where_only_the_outer_loss_reads_phi_the_direct_term_is_all(estimator):
    problem = Plain(CUTS["not read"], direct=True)
    torch.testing.assert_close(hypergradient(problem, estimator), 2 * problem.init_outer(None)["w"])


class Anchored(Adapted):
    """iMAML's anchor kept in the state: g pulls theta to a copy of phi that the start made."""

    def init_params(self, outer, generator):
        return {"w": torch.zeros(4, dtype=torch.float64)}

    def init_state(self, outer, params):
        return {"anchor": outer["w"].clone()}

    def inner_loss(self, outer, inner, batch):
        return self.distance(inner, batch) + ((inner["w"] - inner.state["anchor"]) ** 2).sum()


@pytest.mark.parametrize("name", HOLDS_START)
def test_a_state_made_from_phi_is_refused_where_it_is_held_fixed(name):
    with pytest.raises(ValueError, match=r"holds theta_0 fixed.*estimator=unroll"):
        HOLDS_START[name].check(InnerLoop(Anchored()))


def test_a_state_made_from_phi_is_differentiated():
    exact = hypergradient(Anchored(), Unroll(3))
    torch.testing.assert_close(hypergradient(Anchored(), Forward(3)), exact)
    outer, problem, grad = Anchored().init_outer(None), Anchored(), []
    for i in range(4):
        ends = []
        for radius in (1e-5, -1e-5):
            phi = {"w": outer["w"].clone()}
            phi["w"][i] += radius
            loop = InnerLoop(problem)
            inner = loop.run(phi, loop.start(phi, None, 0), 0, 3)
            ends.append(float(loop.evaluate(phi, inner, 0).value))
        grad.append((ends[0] - ends[1]) / 2e-5)
    torch.testing.assert_close(exact, torch.tensor(grad, dtype=torch.float64), rtol=1e-6, atol=0)


def test_names_that_would_hide_each_other_are_refused():
    class Hidden(Adapted):
        def init_buffers(self, outer, params):
            return {"w": torch.ones(4)}

    with pytest.raises(ValueError, match="init_params returns 'w', and so do its buffers"):
        InnerLoop(Hidden()).start(Hidden().init_outer(None), None, 0)


@pytest.mark.parametrize("name", DIFFERENTIATES)
def test_an_average_without_a_derivative_is_refused_where_nothing_else_is_read(name):
    class Averaged(Plain):
        def init_state(self, outer, params):
            return {"w": params["w"].clone()}

        @torch.no_grad()
        def update_state(self, outer, inner, step):
            return {"w": inner.state["w"].lerp(inner["w"], 0.5)}

        def outer_loss(self, outer, inner, batch):
            return self.distance(inner.state, batch)

    problem = Averaged(lambda phi, theta: (phi * theta).sum())
    with pytest.raises(ValueError, match=r"reads one that update_state|would return 0: no deriv"):
        DIFFERENTIATES[name].check(InnerLoop(problem))


class TwoParts(Plain):
    """phi has two tensors, of which g reads the second one by `second`."""

    def __init__(self, second):
        super().__init__(lambda phi, theta: (phi.exp() * theta**2).sum())
        self.second = second

    def init_outer(self, generator):
        return {**super().init_outer(generator), "b": torch.full((), 0.5, dtype=torch.float64)}

    def inner_loss(self, outer, inner, batch):
        return super().inner_loss(outer, inner, batch) + self.second(outer, inner["w"])


@pytest.mark.parametrize(
    "second",
    [
        lambda phi, theta: phi["b"].exp().item() * theta.sum(),
        lambda phi, theta: phi["b"].detach() * theta.sum(),
        lambda phi, theta: list(phi.values())[1].item() * theta.sum(),
        lambda phi, theta: phi.get("b").data * theta.sum(),
        lambda phi, theta: dict(phi)["b"].round().detach() * theta.sum(),
        lambda phi, theta: (phi["b"] > 0) * theta.sum(),
        lambda phi, theta: torch.nn.Parameter(phi["b"]) * theta.sum(),
        lambda phi, theta: torch.tensor(phi["b"].tolist()) * theta.sum(),
        lambda phi, theta: torch.as_tensor(phi["b"].detach().numpy() * 2) * theta.sum(),
    ],
)
def test_one_tensor_of_phi_that_is_used_without_a_path_is_named(second):
    for estimator in (Unroll(2), Forward(2), Implicit(), OneStep(), FiniteDifference()):
        with pytest.raises(
            ValueError, match=r"a part of the outer variable as it is: .* \(b \(\)\)"
        ):
            estimator.check(InnerLoop(TwoParts(second)))


class Scaled(TwoParts):
    """theta_0 is made of the second tensor by `start`, and of the first one where that learns it.

    Args:
        start: of the second tensor.
        second: of phi and theta, in g.
    """

    warm_start = False

    def __init__(self, start, second=lambda phi, theta: 0.0):
        super().__init__(second)
        self.start = start

    def init_params(self, outer, generator):
        return {"w": torch.ones(4, dtype=torch.float64) * self.start(outer["b"]) + outer["w"]}


@pytest.mark.parametrize("estimator", [Unroll(2), Unroll(2, segments=2), Forward(2)])
def test_a_tensor_that_makes_theta_0_alone_has_its_derivative_or_is_named(estimator):
    grad = estimator(*_run(Scaled(torch.exp)))[1].grad["b"]
    ends = []
    for radius in (1e-5, -1e-5):
        loop, outer, _, key = _run(Scaled(torch.exp))
        outer["b"] += radius
        inner = loop.run(outer, loop.start(outer, None, key), key, 2)
        ends.append(loop.evaluate(outer, inner, key).value)
    torch.testing.assert_close(grad, (ends[0] - ends[1]) / 2e-5, rtol=1e-7, atol=1e-9)
    for problem in (
        Scaled(torch.detach),
        Scaled(lambda b: b.item()),
        Scaled(lambda b: 1.0, lambda phi, theta: phi["b"].detach() * theta.sum()),
    ):
        with pytest.raises(ValueError, match=r"a part of the outer variable as it is.* \(b \(\)\)"):
            estimator.check(InnerLoop(problem))


def test_a_tensor_that_the_second_step_detaches_is_named():
    class Second(TwoParts):
        def inner_batch(self, draw):
            self.inner_step = draw.inner_step
            return self.x

    def second(phi, theta):
        return phi["b"].detach() * theta.sum() if problem.inner_step == 1 else 0.0

    problem = Second(second)
    with pytest.raises(ValueError, match=r"a part of the outer variable as it is: .* \(b \(\)\)"):
        Unroll(3).check(InnerLoop(problem))


def test_a_tensor_of_phi_of_which_only_the_form_is_asked_is_none_of_them():
    problem = TwoParts(lambda phi, theta: theta.sum() * phi["b"].dim() + torch.zeros_like(phi["b"]))
    Unroll(2).check(InnerLoop(problem))
    assert not Unroll(2)(*_run(problem))[1].grad["b"]


def _run(problem):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    return loop, outer, loop.start(outer, None, 0), 0
