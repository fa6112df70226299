"""Learning rates, momentum and decay as outer variables, against runs of `torch.optim`."""

import pytest
import torch

from metaopt import SGD, Adam, AdamW, Cosine, GradientProblem, NormalizedSGD
from metaopt.engine import tree
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
    OneStep,
    Penalty,
    Sama,
    Score,
    Soba,
    Unroll,
)

STEPS, SCHEDULE = 4, Cosine(total=6, warmup=2)


class Regression(GradientProblem):
    """A two-layer network; `make(outer, step)` returns how it is trained, phi does nothing else."""

    warm_start = False

    def __init__(self, make, outer):
        self.inner_optimizer, self.first = make, outer
        draw = torch.Generator().manual_seed(0)
        self.x, self.xv = torch.randn(2, 20, 3, generator=draw, dtype=torch.float64)
        self.y, self.yv = torch.randn(2, 20, 1, generator=draw, dtype=torch.float64)
        shapes = {"weight": (3, 4), "bias": (4,), "head": (4, 1)}
        self.theta = {
            k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()
        }

    def init_outer(self, generator):
        return {k: v.clone() for k, v in self.first.items()}

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in self.theta.items()}

    def inner_batch(self, draw):
        return self.x, self.y

    def outer_batch(self, draw):
        return self.xv, self.yv

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        return ((torch.tanh(x @ inner["weight"] + inner["bias"]) @ inner["head"] - y) ** 2).mean()

    outer_loss = inner_loss


def settings(outer, step, names=("weight", "bias", "head")):
    """Return rates of each parameter, momentum and decay as phi makes them."""
    lr = {n: outer["log_rates"][i].exp() for i, n in enumerate(names)}
    return {"lr": lr, "weight_decay": outer["log_decay"].exp()}


PHI = {
    "log_rates": torch.tensor([-2.0, -3.0, -2.5], dtype=torch.float64),
    "log_decay": torch.tensor(-2.0, dtype=torch.float64),
    "momentum": torch.tensor(0.5, dtype=torch.float64),
}
CASES = {
    "sgd": (lambda o, k: SGD(**settings(o, k)), torch.optim.SGD, ()),
    "momentum": (
        lambda o, k: SGD(**settings(o, k), momentum=o["momentum"]), torch.optim.SGD, ("momentum",)
    ),
    "nesterov": (
        lambda o, k: SGD(**settings(o, k), momentum=o["momentum"], nesterov=True),
        torch.optim.SGD, ("momentum", "nesterov"),
    ),
    "clipped": (
        lambda o, k: SGD(**settings(o, k), momentum=o["momentum"], clip_norm=0.7),
        torch.optim.SGD, ("momentum", "clip"),
    ),
    "schedule": (
        lambda o, k: SGD(**settings(o, k), schedule=SCHEDULE), torch.optim.SGD, ("schedule",)
    ),
    "adam": (lambda o, k: Adam(**settings(o, k)), torch.optim.Adam, ()),
    "betas": (
        lambda o, k: Adam(**settings(o, k), betas=(o["momentum"], 0.9)), torch.optim.Adam,
        ("betas",),
    ),
    "adamw": (
        lambda o, k: AdamW(**settings(o, k), schedule=SCHEDULE, clip_norm=0.7),
        torch.optim.AdamW, ("schedule", "clip"),
    ),
}  # fmt: skip


def value_by_torch(problem, outer, algorithm, parts, steps=STEPS):
    """Return F after a run of `torch.optim` that shares no code with metaopt."""
    theta = {k: v.clone().requires_grad_() for k, v in problem.theta.items()}
    rates, own = outer["log_rates"].exp(), {}
    if "momentum" in parts:
        own = {"momentum": float(outer["momentum"]), "nesterov": "nesterov" in parts}
    if "betas" in parts:
        own = {"betas": (float(outer["momentum"]), 0.9)}
    groups = [{"params": [p], "lr": float(r)} for p, r in zip(theta.values(), rates, strict=True)]
    optimizer = algorithm(groups, weight_decay=float(outer["log_decay"].exp()), **own)
    for k in range(steps):
        optimizer.zero_grad()
        problem.inner_loss(None, theta, (problem.x, problem.y)).backward()
        if "clip" in parts:
            torch.nn.utils.clip_grad_norm_(theta.values(), 0.7)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = float(rate) * (SCHEDULE(k) if "schedule" in parts else 1.0)
        optimizer.step()
    with torch.no_grad():
        return float(problem.outer_loss(None, theta, (problem.xv, problem.yv)))


def differences(function, outer, radius=1e-5):
    """Return central differences of a function of phi."""
    grad = {k: torch.zeros_like(v) for k, v in outer.items()}
    for name, slope in grad.items():
        for i in range(slope.numel()):
            ends = []
            for sign in (radius, -radius):
                moved = {k: v.clone() for k, v in outer.items()}
                moved[name].view(-1)[i] += sign
                ends.append(function(moved))
            slope.view(-1)[i] = (ends[0] - ends[1]) / (2 * radius)
    return grad


def hypergradient(problem, estimator):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    estimator.check(loop)
    return estimator(loop, outer, loop.start(outer, None, 0), 0)[1].grad


def assert_near(grad, wanted):
    for name, slope in wanted.items():
        torch.testing.assert_close(grad[name], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_the_derivative_is_that_of_a_run_of_torch(case):
    make, algorithm, parts = CASES[case]
    problem = Regression(make, PHI)
    wanted = differences(lambda o: value_by_torch(problem, o, algorithm, parts), PHI)
    assert abs(wanted["log_rates"]).min() > 1e-5
    for estimator in (Unroll(STEPS), Unroll(STEPS, segments=2), Forward(STEPS)):
        assert_near(hypergradient(problem, estimator), wanted)


@pytest.mark.parametrize("case", CASES)
def test_one_step_is_exact_through_one_step(case):
    make, algorithm, parts = CASES[case]
    problem = Regression(make, PHI)
    wanted = differences(lambda o: value_by_torch(problem, o, algorithm, parts, 1), PHI)
    assert_near(hypergradient(problem, OneStep()), wanted)
    assert_near(hypergradient(problem, Unroll(1)), wanted)


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_place_equals_one_on_the_graph(case):
    problem = Regression(CASES[case][0], PHI)
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    in_place = loop.run(outer, loop.start(outer, None, 0), 0, STEPS)
    inner = loop.start(outer, None, 0)
    for k in range(STEPS):
        inner = tree.detach(loop.step(outer, loop.leaves(inner), loop.draw(inner, 0, k)))
    for name, param in in_place.params.items():
        assert torch.equal(param, inner.params[name])


class Linear(GradientProblem):
    """Meta-SGD (Li et al., 2017): phi is theta_0 and one rate for each of its elements."""

    warm_start = False

    def __init__(self, per_step=False):
        draw = torch.Generator().manual_seed(0)
        self.x, self.xv = torch.randn(2, 30, 4, generator=draw, dtype=torch.float64)
        self.target = torch.randn(4, generator=draw, dtype=torch.float64)
        self.per_step = per_step

    def init_outer(self, generator):
        rates = torch.linspace(-0.05, 0.2, 4 * STEPS, dtype=torch.float64).view(STEPS, 4)
        start = torch.full((4,), 0.1, dtype=torch.float64)
        return {"rates": rates if self.per_step else rates[-1].clone(), "start": start}

    def inner_optimizer(self, outer, step):
        return SGD(lr={"theta": outer["rates"][step] if self.per_step else outer["rates"]})

    def init_params(self, outer, generator):
        return {"theta": outer["start"].clone()}

    def inner_batch(self, draw):
        return self.x

    def outer_batch(self, draw):
        return self.xv

    def inner_loss(self, outer, inner, batch):
        return ((batch @ (inner["theta"] - self.target)) ** 2).mean()

    outer_loss = inner_loss


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("estimator", [Unroll(STEPS), Unroll(STEPS, segments=2), Forward(STEPS)])
def test_meta_sgd_equals_autograd_through_the_same_steps(estimator, per_step):
    problem = Linear(per_step)
    phi = {k: v.requires_grad_() for k, v in problem.init_outer(None).items()}
    theta = phi["start"]
    for k in range(STEPS):
        loss = ((problem.x @ (theta - problem.target)) ** 2).mean()
        (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - (phi["rates"][k] if per_step else phi["rates"]) * slope
    loss = ((problem.xv @ (theta - problem.target)) ** 2).mean()
    wanted = dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True))
    for name, grad in hypergradient(problem, estimator).items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-11, atol=1e-12)


def test_a_step_without_a_rate_is_refused_before_the_run():
    with pytest.raises(
        ValueError, match=r"Linear.inner_optimizer\(outer, step=4\): .*one rate for"
    ):
        Unroll(STEPS + 1).check(InnerLoop(Linear(per_step=True)))


def test_groups_take_tensors():
    def make(outer, step):
        return SGD(lr=0.1, groups=[{"match": "bias", "lr": outer["log_rates"].exp()}])

    phi = {"log_rates": torch.tensor(-2.0, dtype=torch.float64)}
    problem = Regression(make, phi)

    def value(outer):
        theta = {k: v.clone().requires_grad_() for k, v in problem.theta.items()}
        rest = [v for k, v in theta.items() if k != "bias"]
        group = {"params": [theta["bias"]], "lr": float(outer["log_rates"].exp())}
        optimizer = torch.optim.SGD([group, {"params": rest}], lr=0.1)
        for _ in range(STEPS):
            optimizer.zero_grad()
            problem.inner_loss(None, theta, (problem.x, problem.y)).backward()
            optimizer.step()
        return float(problem.outer_loss(None, theta, (problem.xv, problem.yv)).detach())

    assert_near(hypergradient(problem, Unroll(STEPS)), differences(value, phi))


def test_a_step_of_a_learned_length():
    class Stacked(Regression):
        def init_params(self, outer, generator):
            return {k: v[None].clone() for k, v in self.theta.items()}

        def inner_loss(self, outer, inner, batch):
            return super().inner_loss(outer, {k: v[0] for k, v in inner.items()}, batch)

        outer_loss = inner_loss

    phi = {"length": torch.tensor([0.1], dtype=torch.float64)}
    problem = Stacked(lambda outer, step: NormalizedSGD(lr=outer["length"]), phi)

    def value(outer):
        theta = {k: v[None].clone() for k, v in problem.theta.items()}
        for _ in range(STEPS):
            theta = {k: v.detach().requires_grad_() for k, v in theta.items()}
            loss = problem.inner_loss(None, theta, (problem.x, problem.y))
            slopes = torch.autograd.grad(loss, list(theta.values()))
            size = torch.cat([s.flatten() for s in slopes]).norm()
            steps = [float(outer["length"]) * s / size for s in slopes]
            theta = {k: (v - s).detach() for (k, v), s in zip(theta.items(), steps, strict=True)}
        return float(problem.outer_loss(None, theta, (problem.xv, problem.yv)))

    wanted = differences(value, phi)
    for estimator in (Unroll(STEPS), Forward(STEPS)):
        assert_near(hypergradient(problem, estimator), wanted)


def test_black_box_estimators_run_under_the_perturbed_rates():
    make, algorithm, parts = CASES["momentum"]
    problem = Regression(make, PHI)
    wanted = differences(lambda o: value_by_torch(problem, o, algorithm, parts), PHI)
    estimate = hypergradient(problem, EvolutionStrategies(100, sigma=1e-3, inner_steps=STEPS))
    flat, exact = (torch.cat([g[k].flatten() for k in PHI]) for g in (estimate, wanted))
    assert torch.cosine_similarity(flat, exact, 0) > 0.85  # .97 expected
    loop = InnerLoop(problem)
    _, feedback = Score(STEPS)(loop, PHI, loop.start(PHI, None, 0), 0)
    assert float(feedback.value) == pytest.approx(
        value_by_torch(problem, PHI, algorithm, parts), rel=1e-12
    )


REFUSED = {
    "first order": (FirstOrder(STEPS), "FirstOrder does not differentiate the inner optimizer"),
    "finite difference": (FiniteDifference(), "makes lr of the outer variable"),
    "sama": (Sama(), "Sama does not differentiate"),
    "identity": (Implicit(Identity()), "Implicit does not differentiate"),
    "penalty": (Penalty(), "Penalty does not differentiate"),
    "implicit": (Implicit(), "phi makes lr of SGD, which does not move the stationary point"),
    "exact": (Implicit(Exact()), "phi makes lr of SGD, which does not move the stationary point"),
    "soba": (Soba(), "phi makes lr of SGD, which does not move the stationary point"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_estimators_of_a_stationary_point_refuse_learned_rates(name):
    estimator, message = REFUSED[name]
    problem = Regression(lambda o, k: SGD(lr=o["log_rates"].exp()), {"log_rates": torch.zeros(())})
    with pytest.raises(ValueError, match=rf"{message}.*estimator=unroll, forward or one_step"):
        estimator.check(InnerLoop(problem))
    momentum = Regression(lambda o, k: SGD(lr=0.1, momentum=o["momentum"]), PHI)
    with pytest.raises(ValueError, match=r"momentum .*estimator=unroll, forward or one_step"):
        estimator.check(InnerLoop(momentum))
    Direct(STEPS).check(InnerLoop(problem))


class Decayed(Linear):
    """Ridge whose penalty is the weight decay of the inner optimizer."""

    warm_start = True

    def __init__(self, kind):
        super().__init__()
        self.inner_optimizer = lambda outer, step: kind(
            lr=0.3, weight_decay={"theta": outer["log_decay"].exp()}
        )

    def init_outer(self, generator):
        return {"log_decay": torch.linspace(-2, 0, 4, dtype=torch.float64)}

    def init_params(self, outer, generator):
        hessian = 2 * self.x.T @ self.x / 30
        system = hessian + torch.diag(outer["log_decay"].exp())
        return {"theta": torch.linalg.solve(system, hessian @ self.target)}


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_an_implicit_estimator_carries_a_learned_decay(kind):
    problem = Decayed(kind)
    phi = {k: v.requires_grad_() for k, v in problem.init_outer(None).items()}
    loss = problem.outer_loss(None, problem.init_params(phi, None), problem.xv)
    (wanted,) = torch.autograd.grad(loss, phi["log_decay"])
    grad = hypergradient(problem, Implicit(Exact(), inner_steps=0))["log_decay"]
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=0)
    for estimator in (Implicit(Identity()), FiniteDifference(), Penalty()):
        with pytest.raises(ValueError, match="makes weight_decay of the outer variable"):
            estimator.check(InnerLoop(problem))


def test_soba_converges_to_it():
    problem = Decayed(SGD)
    loop, phi = InnerLoop(problem), problem.init_outer(None)
    inner, estimator = loop.start(phi, None, 0), Soba()
    for key in range(300):
        inner, feedback = estimator(loop, phi, inner, key)
    wanted = hypergradient(problem, Implicit(Exact(), inner_steps=0))["log_decay"]
    torch.testing.assert_close(feedback.grad["log_decay"], wanted, rtol=1e-8, atol=0)


def test_a_function_that_makes_no_optimizer_is_named():
    problem = Regression(lambda outer, step: None, PHI)
    with pytest.raises(TypeError, match=r"inner_optimizer\(outer, step=0\) returned NoneType"):
        Unroll().check(InnerLoop(problem))


def test_an_optimizer_of_another_kind_in_later_steps_is_refused():
    def make(outer, step):
        return SGD(lr=outer["log_rates"][0].exp(), momentum=0.9 if step else 0.0)

    message = "SGD with momentum for step 3, and SGD with no moments for the first"
    with pytest.raises(ValueError, match=message):
        Unroll(STEPS).check(InnerLoop(Regression(make, PHI)))


@pytest.mark.parametrize(
    "read", [lambda t: float(t.detach()), lambda t: t.detach(), lambda t: t.data, lambda t: 0 * 1.0]
)
def test_a_rate_that_is_read_without_its_derivative_is_named(read):
    def make(outer, step):
        return SGD(lr=read(outer["rate"]), momentum=outer["momentum"])

    problem = Regression(make, PHI | {"rate": torch.tensor(0.1, dtype=torch.float64)})
    for estimator in (Unroll(STEPS), OneStep(), Implicit()):
        with pytest.raises(ValueError, match=r"reads outer\['rate'\], and no derivative leads"):
            estimator.check(InnerLoop(problem))
    EvolutionStrategies().check(InnerLoop(problem))
