"""Every estimator with several seeds: each seed has the numbers of a run of its own.

Closed forms and finite differences are compared with the estimators in other files, for one run.
"""

import pytest
import torch
from cases import ForkedAverage
from seeds import SEEDS, assert_as_alone

from metaopt.engine import Engine, tree
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.estimators import (
    ConjugateGradient,
    EvolutionStrategies,
    Exact,
    FiniteDifference,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    Neumann,
    Nystrom,
    OneStep,
    Sama,
    ScoreFunction,
    Soba,
    Unroll,
)
from metaopt.nn import MLP
from metaopt.optimizers import Descent
from metaopt.problems.examples import Quadratic, Ridge
from metaopt.problems.meta_pseudo_labels import MetaPseudoLabels
from metaopt.problems.meta_pseudo_labels.data import two_moons
from metaopt.problems.meta_pseudo_labels.losses import Consistency


class Scaled(Ridge):
    """Ridge problems of very different scale and condition, so that nothing is shared by luck."""

    def __init__(self, seed, optimizer=None):
        super().__init__(features=6, rows=12, seed=seed, spread=2.0 + seed)
        self.inner_optimizer = optimizer or SGD(lr=0.05)
        x, y = self.train
        self.train = x * (1 + 0.3 * seed), y * 10.0 ** (seed - 3)

    def init_params(self, outer, generator):
        return {"weight": torch.randn(6, generator=generator, dtype=torch.float64)}


SOLVERS = {
    "identity": lambda: Identity(),
    "warm": lambda: ConjugateGradient(iterations=4),
    "tolerance": lambda: ConjugateGradient(iterations=20, tolerance=0.05, damping=0.0),
    "cold": lambda: ConjugateGradient(warm_start=False, tolerance=0.0),
    "preconditioned": lambda: ConjugateGradient(preconditioner=Nystrom(rank=3, refresh=2)),
    "neumann": lambda: Neumann(terms=6),
    "exact": lambda: Exact(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_each_seed_has_a_solve_of_its_own(name):
    assert_as_alone(Scaled, lambda: Implicit(SOLVERS[name](), inner_steps=2), rtol=1e-8)


class Saddle(Quadratic):
    """A Hessian with a negative eigenvalue in one of the seeds."""

    def __init__(self, seed):
        super().__init__(features=6, seed=seed, inner_optimizer=SGD(lr=0.01))
        if seed == SEEDS[0]:
            values, vectors = torch.linalg.eigh(self.curvature)
            values[0] = -0.3
            self.curvature = vectors * values @ vectors.T


NEGATIVE = [
    lambda: ConjugateGradient(iterations=20),
    lambda: Neumann(terms=20),
    lambda: Neumann(terms=20, step=0.1),
]


@pytest.mark.parametrize("solve", NEGATIVE)
def test_a_negative_curvature_ends_the_solve_of_its_seed_alone(solve):
    assert_as_alone(Saddle, lambda: Implicit(solve()), rtol=1e-8)
    problems = [Saddle(seed) for seed in SEEDS]
    engine = Engine(problems, Implicit(solve()), Descent(), outer_steps=1, seeds=SEEDS)
    ((_, feedback),) = list(engine)
    assert feedback.metrics["solve/negative_curvature"].tolist() == [1, 0, 0]


class Flat(Quadratic):
    """A part of the problem that is 0 in one of the seeds."""

    def __init__(self, seed, part):
        super().__init__(features=6, seed=seed)
        setattr(self, part, getattr(self, part) * (seed != SEEDS[0]))


def test_a_seed_whose_outer_loss_has_no_slope_has_a_solution_of_zero():
    assert_as_alone(
        lambda seed: Flat(seed, "target"), lambda: Implicit(Neumann(), inner_steps=1), rtol=1e-8
    )


def test_a_seed_without_curvature_is_refused():
    problems = [Flat(seed, "curvature") for seed in SEEDS]
    engine = Engine(
        problems, Implicit(Neumann(), inner_steps=0), Descent(), outer_steps=1, seeds=SEEDS
    )
    with pytest.raises(ValueError, match="no curvature along dF/dtheta"):
        list(engine)


def test_a_step_that_is_too_large_for_a_seed_is_refused():
    problems = [Scaled(seed) for seed in SEEDS]
    engine = Engine(
        problems, Implicit(Neumann(terms=40, step=0.9)), Descent(), outer_steps=1, seeds=SEEDS
    )
    with pytest.raises(ValueError, match=r"Neumann\(step=0.9\) diverges"):
        list(engine)


def test_soba_keeps_a_solution_of_each_seed():
    assert_as_alone(Scaled, lambda: Soba(step=0.02), steps=12)


class Constants(Scaled):
    """A loss with parts that it treats as constant."""

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        weight = inner["weight"]
        residual = x @ weight - y
        with torch.no_grad():
            size = weight.abs().mean()
        positive = (weight > 0).to(weight)
        penalty = (outer["log_penalty"].exp() * weight**2 * (1 + positive)).sum() * (1 + size)
        return (residual**2 / (1 + residual.detach().abs())).mean() + penalty / 2


class Minibatches(Constants):
    """Another batch in each step."""

    def inner_batch(self, draw):
        chosen = torch.randint(len(self.train[0]), (5,), generator=draw.generator)
        return self.train[0][chosen], self.train[1][chosen]


DIFFERENCES = {"finite difference": FiniteDifference, "sama": Sama}


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("problem", [Scaled, Constants, Minibatches])
def test_a_difference_has_a_radius_of_each_seed(problem, name):
    # A difference of float64 with a radius of 1e-7 has 9 digits.
    assert_as_alone(problem, DIFFERENCES[name], rtol=1e-5, atol=1e-7)


def falling(outer, step):
    """Return an inner optimizer that phi has no part in."""
    return SGD(lr=0.05 / (1 + step))


@pytest.mark.parametrize("estimator", [FiniteDifference, Sama, lambda: Implicit(Identity())])
def test_an_optimizer_by_step_is_none_of_phi_for_several_seeds(estimator):
    assert_as_alone(lambda seed: Scaled(seed, falling), estimator, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05, momentum=0.5), AdamW(lr=0.05, clip_norm=1.0)])
@pytest.mark.parametrize("problem", [Scaled, Constants])
def test_one_step_treats_constants_as_it_does_alone(problem, optimizer):
    assert_as_alone(lambda seed: problem(seed, optimizer), OneStep)


class Fork(Scaled):
    """theta starts at phi."""

    warm_start = False

    def init_outer(self, generator):
        return {"weight": torch.randn(6, generator=generator, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"weight": outer["weight"].clone()}

    def inner_loss(self, outer, inner, batch):
        return self.outer_loss(outer, inner, batch)

    def metrics(self, outer, inner):
        return {"first": inner.params["weight"][0]}


FORKS = {
    "first order": lambda: FirstOrder(2),
    "unroll": lambda: Unroll(3),
    "forward": lambda: Forward(3),
    "persistent": lambda: EvolutionStrategies(pairs=2, persistent=True),
}
ROUNDED = {"persistent": 1e-8}
"""Relative tolerances of estimators that divide a difference of losses by a small number."""


@pytest.mark.parametrize("name", FORKS)
def test_a_start_made_of_phi_is_that_of_its_seed(name):
    assert_as_alone(Fork, FORKS[name], rtol=ROUNDED.get(name, 1e-10))


@pytest.mark.parametrize(
    ("estimator", "rtol"),
    [
        (lambda: Forward(2), 1e-10),
        # A difference over 2 sigma^2 = 0.02, of which Adam takes little more than the sign.
        (lambda: EvolutionStrategies(pairs=2, persistent=True), 1e-8),
    ],
)
def test_what_is_drawn_or_carried_for_each_number_is_of_its_seed(estimator, rtol):
    assert_as_alone(Scaled, estimator, rtol=rtol, atol=1e-10)


def moons(seed):
    """Return Two Moons in double precision."""
    data = two_moons(points=200, test_points=100, seed=seed)
    for name, value in vars(data).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            object.__setattr__(data, name, value.double())
    return data


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("feedback", ["per_example", "loss_difference", "dot_product", "cosine"])
def test_each_seed_rewards_its_own_decisions(feedback):
    def make(seed):
        return MetaPseudoLabels(
            moons(seed), MLP, MLP, SGD(lr=0.1), consistency=Consistency(ramp=2), batch=16, seed=seed
        )

    estimator = lambda: ScoreFunction(feedback, baseline=0.9, clip=0.5)  # noqa: E731
    assert_as_alone(make, estimator, lambda: Descent("sgd", lr=0.1), steps=4)


@pytest.mark.usefixtures("double")
def test_a_teacher_with_dropout_is_refused():
    def network(shape, classes):
        return torch.nn.Sequential(
            MLP(shape, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, classes)
        )

    problems = [MetaPseudoLabels(moons(s), network, MLP, SGD(lr=0.1), batch=16) for s in SEEDS]
    with pytest.raises(ValueError, match="besides tensors"):
        Engine(problems, ScoreFunction(), Descent(), outer_steps=1, seeds=SEEDS)


class Average(ForkedAverage, Fork):
    """F reads an average of theta, and BatchNorm's buffers are changed by each step."""

    def __init__(self, seed):
        super().__init__(seed)
        self.train = Ridge(features=6, rows=12, seed=seed).train
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3)).double()

    def init_outer(self, generator):
        return {
            k: torch.randn(v.shape, generator=generator, dtype=torch.float64)
            for k, v in self.module.named_parameters()
        }

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        out = torch.func.functional_call(self.module, dict(inner), (x,)).sum(1)
        return ((out - y) ** 2).mean()

    def outer_loss(self, outer, inner, batch):
        return self.inner_loss(outer, {**inner, **inner.state["average"]}, batch)

    def metrics(self, outer, inner):
        return {"mean": inner.buffers["1.running_mean"].sum()}


def test_buffers_and_state_are_those_of_each_seed():
    # Not Adam: a bias before BatchNorm has a gradient of round-off, which it would enlarge.
    assert_as_alone(Average, lambda: Unroll(3), lambda: Descent("sgd", lr=0.1))


class Prepared(Scaled):
    """Batches are drawn and decided under the key of each seed."""

    def inner_batch(self, draw):
        chosen = torch.randint(12, (8,), generator=draw.generator)
        return self.train[0][chosen], self.train[1][chosen]

    def prepare_batch(self, outer, inner, batch, draw):
        noise = torch.rand(8, generator=draw.generator, dtype=torch.float64)
        return batch[0], batch[1] + noise * tree.norm({"weight": inner["weight"]})

    def observe(self, outer, inner, feedback):
        state = {"size": tree.norm(feedback.grad) * feedback.value}
        return inner._replace(state=state)

    def finish(self, outer, inner, loop, key):
        return loop.run(outer, inner, key, 2)


def test_hooks_get_what_belongs_to_their_seed():
    assert_as_alone(Prepared, lambda: Unroll(3))
    problems = [Prepared(seed) for seed in SEEDS]
    engine = Engine(problems, Unroll(3), Descent("adam"), outer_steps=2, seeds=SEEDS)
    assert len(list(engine)) == 2
    engine.finish()
    for i, seed in enumerate(SEEDS):
        alone = Engine(Prepared(seed), Unroll(3), Descent("adam"), outer_steps=2, seed=seed)
        assert len(list(alone)) == 2
        alone.finish()
        for name, value in alone.inner.params.items():
            assert value.isfinite().all()
            torch.testing.assert_close(engine.inner.params[name][i], value)
