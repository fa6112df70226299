"""Several seeds trained together: each has the numbers of a run of its own."""

import functools
from functools import cached_property

import pytest
import torch
from seeds import SEEDS, assert_as_alone

from metaopt.engine import Engine
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW, NormalizedSGD
from metaopt.engine.protocols import NonFiniteError
from metaopt.engine.random import Keys, fold, generator, replay
from metaopt.engine.schedules import Cosine
from metaopt.engine.seeds import seeds_in_words
from metaopt.estimators import Direct, OneStep, Penalty, Score, Soba, Unroll
from metaopt.optimizers import Descent, MirrorDescent, Schedule, Search
from metaopt.problems.examples import Knapsack, Quadratic, Ridge


class Clipped(Ridge):
    """Ridge whose steps are clipped, in some replicates and steps and not in others."""

    def __init__(self, seed, optimizer):
        super().__init__(features=6, rows=12, seed=seed, inner_optimizer=optimizer)

    def init_params(self, outer, generator):
        start = torch.randn(6, generator=generator, dtype=torch.float64)
        return {"weight": start + 0.0 * outer["log_penalty"]}


ESTIMATORS = {
    "unroll": lambda: Unroll(4),
    "segments": lambda: Unroll(6, segments=2, truncation=4),
    "direct": lambda: Direct(2),
    "one step": lambda: OneStep(2),
    "penalty": lambda: Penalty(inner_steps=2),
    "soba": Soba,
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("problem", [Ridge, Quadratic])
def test_each_seed_is_as_it_is_alone(problem, name):
    make = lambda seed: problem(features=6, seed=seed)  # noqa: E731
    assert_as_alone(make, ESTIMATORS[name])


OPTIMIZERS = {
    "clipped sgd": SGD(lr=0.1, momentum=0.5, weight_decay=0.1, clip_norm=0.3),
    "clipped adamw": AdamW(lr=0.02, clip_norm=0.3),
    "groups": Adam(lr=0.02, groups=[{"match": "weight", "lr": 0.05}]),
    "rates by name": SGD(lr={"weight": torch.linspace(0.01, 0.1, 6).double()}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_inner_optimizers_keep_replicates_apart(name):
    assert_as_alone(lambda seed: Clipped(seed, OPTIMIZERS[name]), lambda: Unroll(4))


class OwnSteps(Ridge):
    """A step of one length, of a gradient whose norm is that of its own replicate."""

    inner_optimizer = None

    def __init__(self, seed):
        super().__init__(features=6, rows=12, seed=seed)
        self.inner_optimizer = NormalizedSGD(lr=0.1)

    def init_params(self, outer, generator):
        return {"weight": torch.zeros(1, 6, dtype=torch.float64)}

    def inner_loss(self, outer, inner, batch):
        return super().inner_loss(outer, {"weight": inner["weight"][0]}, batch)

    def outer_loss(self, outer, inner, batch):
        return super().outer_loss(outer, {"weight": inner["weight"][0]}, batch)

    def metrics(self, outer, inner):
        return {"size": inner.params["weight"].norm()}


def test_an_optimizer_without_elementwise_steps_keeps_replicates_apart():
    assert_as_alone(OwnSteps, lambda: Unroll(3))


class LearnedRate(Ridge):
    """phi holds the learning rate as well."""

    def inner_optimizer(self, outer, step):
        return SGD(lr=outer["log_rate"].exp(), clip_norm=0.5)

    def __init__(self, seed):
        super().__init__(features=6, rows=12, seed=seed)
        del self.inner_optimizer

    def init_outer(self, generator):
        rate = torch.rand((), generator=generator, dtype=torch.float64)
        return {**super().init_outer(generator), "log_rate": rate - 3}


@pytest.mark.parametrize("estimator", [lambda: Unroll(4), lambda: OneStep(2)])
def test_each_replicate_has_its_own_learned_rate(estimator):
    assert_as_alone(LearnedRate, estimator)


class Simplex(Quadratic):
    """phi is on the simplex."""

    def init_outer(self, generator):
        return {"phi": torch.rand(5, generator=generator, dtype=torch.float64).softmax(-1)}


OUTER = {
    "clipped": lambda: Descent("sgd", lr=0.1, clip_norm=0.05),
    "accumulated": lambda: Descent("adamw", lr=0.1, accumulate=2, clip_norm=0.05),
    "torch's": lambda: Descent(functools.partial(torch.optim.RAdam, lr=0.1)),
    "mirror": lambda: MirrorDescent(lr=0.1, normalise=True, average=True),
}


@pytest.mark.parametrize("name", OUTER)
def test_outer_optimizers_keep_replicates_apart(name):
    assert_as_alone(lambda seed: Simplex(seed=seed), lambda: Unroll(2), OUTER[name])


def test_one_problem_may_be_that_of_all_seeds():
    problem = Clipped(0, SGD(lr=0.1))
    assert_as_alone(lambda seed: problem, lambda: Unroll(3))


def test_keys_are_folded_one_by_one():
    keys = fold(Keys([1, 2]), "batch", 3)
    assert keys.each == (fold(1, "batch", 3), fold(2, "batch", 3))
    with pytest.raises(TypeError, match="same numbers for all replicates"):
        generator(keys)
    with pytest.raises(TypeError, match="same numbers for all replicates"), replay(keys):
        pass


class Random(Ridge):
    """A loss that vmap refuses, or that reads a number which the seed decides."""

    def __init__(self, seed, kind):
        super().__init__(features=6, rows=12, seed=seed)
        self.kind = kind
        self.shift = 0.1 * seed

    def inner_batch(self, draw):
        x, y = self.train
        return (x[: 3 + self.seed % 3], y[: 3 + self.seed % 3]) if self.kind == "ragged" else (x, y)

    def inner_loss(self, outer, inner, batch):
        loss = super().inner_loss(outer, inner, batch)
        if self.kind == "dropout":
            loss = loss * torch.nn.functional.dropout(torch.ones_like(loss), 0.5)
        if self.kind == "item":
            loss = loss * inner["weight"].sum().exp().item()
        return loss + (self.shift * inner["weight"].sum() if self.kind == "number" else 0.0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dropout", "random numbers .dropout.*-m seed=0,1,2"),
        ("item", "read a number off a tensor.*-m seed=0,1,2"),
        ("ragged", "the batches of Random differ in their shapes.*-m seed=0,1,2"),
        ("number", "reads the attribute 'shift'.*-m seed=0,1,2"),
    ],
)
def test_what_cannot_be_stacked_is_refused(kind, message):
    problems = [Random(seed, kind) for seed in SEEDS]
    with pytest.raises(ValueError, match=message):
        Engine(problems, Unroll(2), Descent(), outer_steps=1, seeds=SEEDS)


def test_roles_that_know_one_run_are_refused():
    with pytest.raises(TypeError, match=r"Score cannot train several seeds.*-m seed=0,1,2"):
        Engine(Ridge(), Score(), Schedule(lambda step: 0.0), outer_steps=1, seeds=2)
    with pytest.raises(TypeError, match=r"gradient problems.*Knapsack"):
        Engine(Knapsack(), Unroll(), Descent(), outer_steps=1, seeds=2)
    with pytest.raises(TypeError, match="Search cannot train several seeds"):
        Engine(Ridge(), Unroll(), Search(lambda *a: None), outer_steps=1, seeds=2)


def test_an_outer_optimizer_that_mixes_entries_is_refused():
    descent = Descent(functools.partial(torch.optim.Adafactor, lr=0.1))
    with pytest.raises(TypeError, match=r"Adafactor may step .* one seed by another's"):
        Engine(Ridge(), Unroll(), descent, outer_steps=1, seeds=2)


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [1.5], 1.5, "12", True])
def test_seeds_out_of_range_are_refused(seeds):
    with pytest.raises(ValueError, match="how many to train together"):
        Engine(Ridge(), Unroll(), Descent(), outer_steps=1, seeds=seeds)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [(None, "seed 3"), ((7, 2), "seeds 7, 2"), (range(3, 35), "seeds 3..34"), ([4], "seed 4")],
)
def test_seeds_in_words(seeds, text):
    assert seeds_in_words(3, seeds) == text


class Diverging(Ridge):
    """Diverges with seed 0."""

    def inner_loss(self, outer, inner, batch):
        return super().inner_loss(outer, inner, batch) * self.factor

    def __init__(self, seed):
        super().__init__(features=6, rows=12, seed=seed)
        self.factor = torch.tensor(1e200 if seed == 0 else 1.0, dtype=torch.float64)


def test_the_seed_that_diverges_is_named():
    problems = [Diverging(seed) for seed in SEEDS]
    engine = Engine(problems, Unroll(3), Descent(), outer_steps=3, seeds=SEEDS)
    with pytest.raises(NonFiniteError, match=r"of seed 0 is (nan|inf) at outer step"):
        list(engine)


class Plain(GradientProblem):
    """Least squares with a decay; the seed decides a Python number that one loss reads.

    Where phi and theta start, at 0, neither loss has a gradient in theta that depends on it.
    """

    inner_optimizer = SGD(lr=0.1)

    def __init__(self, seed, where="outer", hidden=False):
        generator = torch.Generator().manual_seed(seed)
        self.where = where
        self.x, self.y = (torch.randn(9, 4, generator=generator).double() for _ in range(2))
        alpha = float(torch.rand((), generator=generator))
        self.alpha = (lambda: alpha) if hidden else alpha

    def init_outer(self, generator):
        return {"phi": torch.zeros(4, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"w": torch.zeros(4, 4, dtype=torch.float64)}

    def inner_batch(self, draw):
        return self.x, self.y

    def outer_batch(self, draw):
        return self.x, self.y

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        decay = (outer["phi"] * inner["w"] ** 2).sum()
        return (x @ inner["w"] - y).square().mean() + self.scale("inner") * decay

    def outer_loss(self, outer, inner, batch):
        x, y = batch
        away = (outer["phi"] - 1).square().sum()
        return (x @ inner["w"] - y).square().mean() + self.scale("outer") * away

    def scale(self, loss):
        if self.where != loss:
            return 1.0
        return self.alpha() if callable(self.alpha) else self.alpha


@pytest.mark.parametrize("where", ["inner", "outer"])
@pytest.mark.parametrize(
    ("hidden", "message"), [(False, "reads the attribute 'alpha'"), (True, "has other losses with")]
)
def test_a_number_that_the_seed_decides_is_refused(where, hidden, message):
    problems = [Plain(seed, where, hidden) for seed in SEEDS]
    with pytest.raises(ValueError, match=rf"Plain.*{message}.*-m seed=0,1,2"):
        Engine(problems, Unroll(2), Descent(), outer_steps=1, seeds=SEEDS)


def test_a_number_that_no_loss_reads_may_differ():
    assert_as_alone(lambda seed: Plain(seed, where=None), lambda: Unroll(3))


def test_inner_optimizers_that_differ_later_are_refused():
    problems = [Plain(seed, where=None) for seed in SEEDS]
    for problem, seed in zip(problems, SEEDS, strict=True):
        problem.inner_optimizer = SGD(lr=0.1, schedule=Cosine(4 + seed))
    with pytest.raises(ValueError, match=r"Plain.inner_optimizer differs between seeds"):
        Engine(problems, Unroll(2), Descent(), outer_steps=1, seeds=SEEDS)


class Cached(Plain):
    """A loss reads what is computed once, from data of the seed."""

    @cached_property
    def gram(self):
        return self.x.T @ self.x / 9

    def inner_loss(self, outer, inner, batch):
        w = inner["w"]
        return super().inner_loss(outer, inner, batch) + (w * (self.gram @ w)).sum()


@pytest.mark.parametrize("used", [(), SEEDS[:1], SEEDS])
def test_a_cached_property_is_that_of_each_seed(used):
    """`used`: the seeds whose problems have computed it before."""

    def make(seed):
        problem = Cached(seed, where=None)
        if seed in used:
            assert problem.gram.shape == (4, 4)
        return problem

    assert_as_alone(make, lambda: Unroll(3))
