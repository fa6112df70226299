"""Learning rates, momentum and decay as outer variables, against runs of `torch.optim`."""

import pytest
import torch
from learned_rates import PHI, STEPS, Linear, Regression, hypergradient

from metaopt import SGD, Adam, AdamW, Cosine, NormalizedSGD
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.estimators import (
    EvolutionStrategies,
    Exact,
    FiniteDifference,
    Forward,
    Identity,
    Implicit,
    OneStep,
    Penalty,
    Score,
    Soba,
    Unroll,
)

SCHEDULE = Cosine(total=6, warmup=2)


def settings(outer, step, names=("weight", "bias", "head")):
    """Return rates of each parameter, momentum and decay as phi makes them."""
    lr = {n: outer["log_rates"][i].exp() for i, n in enumerate(names)}
    return {"lr": lr, "weight_decay": outer["log_decay"].exp()}


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
