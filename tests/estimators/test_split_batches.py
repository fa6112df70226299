"""Two processes that split batches: every estimator has the results of one process."""

import pytest
import torch
import torch.nn.functional as F
from ranks import spawn

from metaopt import SGD, Descent, Engine, GradientProblem, Nystrom
from metaopt.engine import distributed, tree
from metaopt.engine.inner_optimizers import Adam
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
    OneStep,
    Penalty,
    Sama,
    ScoreFunction,
    Soba,
    Unroll,
)

pytestmark = pytest.mark.slow


class Weighted(GradientProblem):
    """A small network on examples with learned weights and a learned penalty."""

    def __init__(self, inner_optimizer=None, fork=False):
        self.inner_optimizer = inner_optimizer or SGD(lr=0.1, momentum=0.5)
        self.warm_start = not fork

    def init_outer(self, generator):
        outer = {"weigh": torch.zeros(3, dtype=torch.float64)}
        return {**outer, **self.start()}

    def start(self):
        drawn = torch.Generator().manual_seed(5)
        shapes = {"w": (3, 4), "v": (4,)}
        return {k: torch.randn(s, generator=drawn, dtype=torch.float64) for k, s in shapes.items()}

    def init_params(self, outer, generator):
        if self.warm_start:
            return self.start()
        return {k: outer[k].clone() for k in ("w", "v")}

    def inner_batch(self, draw):
        x = torch.randn(8, 3, generator=draw.generator, dtype=torch.float64)
        return {"x": x, "y": torch.sin(3 * x[:, 0])}

    def outer_batch(self, draw):
        x = torch.randn(6, 3, generator=draw.generator, dtype=torch.float64)
        return x, torch.sin(3 * x[:, 0])

    def errors(self, inner, x, y):
        return (torch.tanh(x @ inner["w"]) @ inner["v"] - y) ** 2

    def inner_loss(self, outer, inner, batch):
        x, y = batch["x"], batch["y"]
        weights = torch.sigmoid(x @ outer["weigh"])
        prior = sum(((inner[k] - outer[k]) ** 2).sum() for k in ("w", "v"))
        return (weights * self.errors(inner, x, y)).mean() + 0.05 * prior

    def outer_loss(self, outer, inner, batch):
        return self.errors(inner, *batch).mean() + 0.01 * (outer["weigh"] ** 2).sum()


class Fork(Weighted):
    """The start of theta is the outer variable."""

    def init_outer(self, generator):
        return self.start()

    def inner_loss(self, outer, inner, batch):
        return self.errors(inner, batch["x"], batch["y"]).mean()

    def outer_loss(self, outer, inner, batch):
        return self.errors(inner, *batch).mean()


class Sampled(Weighted):
    """The targets of inner examples are drawn from p_phi."""

    def init_outer(self, generator):
        return {"weigh": torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)}

    def prepare_batch(self, outer, inner, batch, draw):
        p = torch.sigmoid(batch["x"] @ outer["weigh"])
        return {**batch, "y": torch.bernoulli(p, generator=draw.generator)}

    def log_prob(self, outer, inner, batch):
        logits = batch["x"] @ outer["weigh"]
        return -F.binary_cross_entropy_with_logits(logits, batch["y"], reduction="none")

    def inner_losses(self, outer, inner, batch):
        return self.errors(inner, batch["x"], batch["y"])

    def inner_loss(self, outer, inner, batch):
        return self.inner_losses(outer, inner, batch).mean()

    def feedback_loss(self, outer, inner, batch):
        return self.errors(inner, *batch).mean()


def sampled(kind):
    return lambda: (Sampled(), ScoreFunction(kind, baseline=0.5, clip=0.05))


CASES = {
    "unroll": lambda: (Weighted(Adam(lr=0.05, clip_norm=0.5)), Unroll(4)),
    "unroll segments": lambda: (Weighted(), Unroll(4, schedule="segments")),
    "unroll fork": lambda: (Fork(fork=True), Unroll(3)),
    "unroll tasks": lambda: (Fork(fork=True), Unroll(2, tasks=3)),
    "conjugate gradient": lambda: (Weighted(), Implicit(ConjugateGradient(5), 3)),
    "neumann": lambda: (Weighted(), Implicit(Neumann(4), 3)),
    "nystrom": lambda: (
        Weighted(),
        Implicit(ConjugateGradient(5, preconditioner=Nystrom(rank=4)), 3),
    ),
    "exact": lambda: (Weighted(), Implicit(Exact(), 3)),
    "identity": lambda: (Weighted(), Implicit(Identity(), 3)),
    "one step": lambda: (Weighted(Adam(lr=0.05)), OneStep(2)),
    "finite difference": lambda: (Weighted(), FiniteDifference(inner_steps=3)),
    "sama": lambda: (Weighted(Adam(lr=0.05)), Sama(inner_steps=3)),
    "soba": lambda: (Weighted(SGD(lr=0.05, weight_decay=0.01)), Soba()),
    "soba average": lambda: (Weighted(SGD(lr=0.05)), Soba(average=0.3)),
    "penalty": lambda: (Weighted(SGD(lr=0.05, weight_decay=0.01)), Penalty(inner_steps=3)),
    "forward": lambda: (Weighted(Adam(lr=0.05)), Forward(3)),
    "forward fork": lambda: (Fork(fork=True), Forward(3)),
    "first order": lambda: (Fork(fork=True), FirstOrder(3, tasks=2)),
    "evolution strategies": lambda: (Weighted(), EvolutionStrategies(pairs=2)),
    "persistent": lambda: (Weighted(), EvolutionStrategies(pairs=2, persistent=True)),
    **{
        f"score function, {kind}": sampled(kind)
        for kind in ("loss_difference", "dot_product", "cosine", "per_example")
    },
}
SEEDS = {"seeds": ("unroll", "penalty", "one step", "finite difference")}


def run(name, seeds=None):
    problem, estimator = CASES[name]()
    engine = Engine(problem, estimator, Descent("adam", lr=0.05), outer_steps=4, seeds=seeds)
    metrics = [dict(f.metrics) for _, f in engine][-1]
    metrics = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in metrics.items()}
    # What is kept for the next step is in the checkpoint, which the first process writes for all.
    kept = tree.numbered(engine.estimator.state_dict())
    return {
        "theta": dict(engine.inner.params), "phi": engine.optimizer.solution, "kept": kept,
        **metrics,
    }  # fmt: skip


def everything(rank=0):
    """Return the results of all cases: starting processes is what takes time."""
    with distributed.splitting_batches():
        alone = {name: run(name) for name in CASES}
        return alone | {f"{name}, seeds": run(name, 2) for name in SEEDS["seeds"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return everything(), spawn(everything, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [*CASES, *(f"{name}, seeds" for name in SEEDS["seeds"])])
def test_results_are_those_of_one_process(results, name):
    one, two = results
    # A difference of gradients amplifies round-off by one over its radius.
    tolerance = 1e-5 if name.startswith(("finite", "sama")) else 1e-10
    for result in two:
        torch.testing.assert_close(result[name], one[name], rtol=tolerance, atol=tolerance)
