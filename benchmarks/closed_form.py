"""Relative error of each estimator's hypergradient where that is known, at the shipped settings.

On the ridge problem of `configs/problem/ridge.yaml`, as `metaopt-check problem=ridge` has it: from
the inner solution, and for estimators that keep a state once more after 20 outer steps. Those
whose inner level starts at phi are measured on a quadratic with that start. The column *error* of
the table in docs/choosing_an_estimator.md is what this program prints; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Generator, Tensor

from metaopt.cli import folders
from metaopt.cli.loading import composing
from metaopt.cli.problem_config import composed
from metaopt.engine import tree
from metaopt.engine.finite import Finite
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Estimator, Tree
from metaopt.engine.random import Draw
from metaopt.problems.examples import Ridge
from metaopt.testing import check_hypergradient

FROM_PHI = ("first_order", "reptile")
WITHOUT = ("score", "population_score", "score_function")
"""Estimators without a gradient, and one that needs decisions of which there is no closed form."""

OUTER_STEPS = 20


class RidgeBlocks(Ridge, Finite):
    """Ridge whose data are one block each, for estimators that ask which batch they draw."""

    inner_batches = outer_batches = 1
    inner_batch, outer_batch = Finite.inner_batch, Finite.outer_batch

    def inner_batch_at(self, index: int) -> tuple[Tensor, Tensor]:
        return self.train

    def outer_batch_at(self, index: int) -> tuple[Tensor, Tensor]:
        return self.validation


class Adaptation(GradientProblem):
    """theta_0 = phi, g = (theta - a)' H (theta - a) / 2 and F = |theta - b|^2 / 2 (MAML, one task).

    After K steps of rate r, dF/dphi = (I - r H)^K (theta_K - b).
    """

    warm_start = False

    def __init__(self, size: int = 20, condition: float = 28.0, lr: float = 0.1) -> None:
        draw = torch.Generator().manual_seed(0)
        self.curvature = torch.logspace(0, -1, size, base=condition, dtype=torch.float64)
        self.a, self.b = torch.randn(2, size, generator=draw, dtype=torch.float64)
        self.lr, self.inner_optimizer = lr, SGD(lr=lr)

    def init_outer(self, generator: Generator) -> Tree:
        return {"x": torch.zeros_like(self.a)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        return dict(outer)

    def inner_batch(self, draw: Draw) -> None:
        return None

    outer_batch = inner_batch

    def inner_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        return (self.curvature * (inner["x"] - self.a) ** 2).sum() / 2

    def outer_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        return ((inner["x"] - self.b) ** 2).sum() / 2

    def hypergradient(self, outer: Tree, steps: int) -> Tensor:
        """Return dF/dphi after that many inner steps, in closed form."""
        decay = (1 - self.lr * self.curvature) ** steps
        return decay * (self.a + decay * (outer["x"] - self.a) - self.b)


def shipped() -> tuple[dict[str, Estimator], Mapping[str, Any]]:
    """Return the estimators of configs/estimator as `problem=ridge` makes them, and its config."""
    names = sorted({*folders.groups()["estimator"]} - {*WITHOUT})
    with composing():
        configs = {name: composed(["problem=ridge", f"estimator={name}"]) for name in names}
    made = {n: instantiate(c["estimator"], _convert_="all") for n, c in configs.items()}
    return made, configs["unroll"]


def errors() -> dict[str, list[float]]:
    """Return |g - c| / |c| by estimator, where c is the closed form: at first, and warm."""
    estimators, config = shipped()
    results: dict[str, list[float]] = {name: [] for name in estimators}
    ridge = {**config["problem"], "_target_": "benchmarks.closed_form.RidgeBlocks"}
    rows = check_hypergradient(
        instantiate(ridge, _convert_="all"),
        {name: made for name, made in estimators.items() if name not in FROM_PHI}, steps=5_000,
        # No column of the table is relative to a run: one step of it is enough.
        reference_steps=1, warm_steps=OUTER_STEPS, directions=0, key=config["seed"],
        optimizer=lambda: instantiate(config["optimizer"], _convert_="all"),
    )  # fmt: skip
    for row in rows:
        if row.closed_error is None:
            raise RuntimeError(f"{row.estimator} was refused: {row.refused}")
        results[row.estimator].append(row.closed_error)
    problem = Adaptation()
    loop, outer = InnerLoop(problem), problem.init_outer(torch.Generator())
    exact = problem.hypergradient(outer, config["inner_steps"])
    for name in FROM_PHI:
        _, feedback = estimators[name](loop, outer, loop.start(outer, None, 0), 0)
        assert feedback.grad is not None
        difference = tree.norm({"x": feedback.grad["x"] - exact})
        results[name] = [float(difference / exact.norm())]
    return results


def in_words(values: list[float]) -> str:
    """Return the entry of the docs' table: the error at first, and then warm."""
    return ", then ".join(f"{value:.2g}" for value in values)


def main() -> None:
    torch.set_num_threads(1)
    for name, values in sorted(errors().items()):
        print(f"{name:<22}{in_words(values)}")


if __name__ == "__main__":
    main()
