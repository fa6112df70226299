"""Several seeds, each with a meta-batch of tasks: each seed has the numbers of a run of its own."""

import pytest
import torch
from seeds import SEEDS, assert_as_alone
from sinusoids import Sinusoids
from test_meta_batch import Module

from metaopt.engine import Engine
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    Neumann,
    Nystrom,
    Unroll,
)
from metaopt.optimizers import Descent

TASKS = 3


class Sines(Sinusoids):
    """phi, the amplitudes of tasks and a term of the loss are those of the seed."""

    def __init__(self, seed, optimizer=None, rates=False, proximal=0.3):
        super().__init__(optimizer, rates, proximal)
        self.target = torch.tensor([1.0 + 0.3 * seed], dtype=torch.float64)

    def init_outer(self, generator):
        outer = super().init_outer(generator)
        shift = torch.randn(3, generator=generator, dtype=torch.float64)
        return outer | {"b": outer["b"] + 0.3 * shift}

    def distance(self, theta, batch):
        return (
            super().distance(theta, batch) + 0.1 * (theta["v"].sum() - self.target).square().sum()
        )

    def metrics(self, outer, inner):
        return {"last": inner.params["v"].sum()}


ESTIMATORS = {
    "unroll": lambda: Unroll(3, tasks=TASKS),
    "segments": lambda: Unroll(6, segments=3, tasks=TASKS),
    "revolve": lambda: Unroll(6, schedule="revolve", snapshots=2, store="disk", tasks=TASKS),
    "first order": lambda: FirstOrder(3, tasks=TASKS),
    "identity": lambda: Implicit(Identity(), 3, any_start=True, tasks=TASKS),
    "cg": lambda: Implicit(ConjugateGradient(4), 3, any_start=True, tasks=TASKS),
    "preconditioned": lambda: Implicit(
        ConjugateGradient(4, preconditioner=Nystrom(rank=3)), 3, any_start=True, tasks=TASKS
    ),
    "neumann": lambda: Implicit(Neumann(terms=5), 3, any_start=True, tasks=TASKS),
    "exact": lambda: Implicit(Exact(), 3, any_start=True, tasks=TASKS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_seed_has_tasks_of_its_own(name):
    assert_as_alone(Sines, ESTIMATORS[name], steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Unroll, Forward])
@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.1, momentum=0.5, clip_norm=0.2), AdamW(lr=0.02, weight_decay=0.1, clip_norm=0.2)],
)
def test_each_task_is_clipped_by_its_own_norm(estimator, optimizer):
    assert_as_alone(lambda seed: Sines(seed, optimizer), lambda: estimator(3, tasks=TASKS), steps=3)


def test_each_seed_learns_the_rates_of_its_tasks():
    assert_as_alone(lambda seed: Sines(seed, rates=True), lambda: Unroll(2, tasks=TASKS), steps=2)


class Seeded(Module):
    """A module whose first weights are those of the seed."""

    def init_outer(self, generator):
        return {
            k: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=torch.float64)
            for k, v in super().init_outer(generator).items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch norm", "average", "nested", "prepared", "ragged"])
def test_tasks_of_modules_are_those_of_each_seed(kind):
    """The tasks of the last kind run one after the other, each of them for all seeds."""
    # Not Adam: a bias before BatchNorm has a gradient of round-off, which it would enlarge.
    outer_optimizer = lambda: Descent("sgd", lr=0.1)  # noqa: E731
    estimator = lambda: Unroll(2, tasks=TASKS)  # noqa: E731
    assert_as_alone(lambda seed: Seeded(kind), estimator, outer_optimizer, steps=3)
    problems = [Seeded(kind) for _ in SEEDS]
    engine = Engine(problems, estimator(), outer_optimizer(), outer_steps=1, seeds=SEEDS)
    assert len(list(engine)) == 1
    assert engine.loop.meta_batches[TASKS].runs == (kind != "ragged")
