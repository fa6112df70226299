"""What metaopt and its peers run: problems in float64 whose batches are the same for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.mlp import RowWeights
from metaopt.engine import Engine
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.random import Draw
from metaopt.estimators import Implicit, Neumann, Saba, Soba, Unroll
from metaopt.optimizers import Descent
from metaopt.problems.examples import StochasticQuadratic

K = 10
"""Inner steps of an outer step, unless a case says otherwise."""

TERMS, TERM_STEP = 6, 0.1
"""Terms of the Neumann series, and its step."""

WIDTHS = {"2.4 k": (64, 32, 10), "94 k": (64, 272, 272, 10)}
"""Of the network, by its number of parameters."""

RATES = {"sgd": 0.1, "adam": 1e-3}
"""Inner learning rates."""


class Reweighting(RowWeights):
    """A weight for each row of noise; all batches of an outer step are the same 64 rows.

    Args:
        widths: of the network.
        algorithm: inner optimizer, sgd or adam.
        inner_steps: K.
        restart: whether each outer step trains from theta_0, as in few-shot learning, or goes on.
        eps: Adam's.
    """

    def __init__(
        self, widths: tuple[int, ...], algorithm: str = "sgd", inner_steps: int = K,
        restart: bool = False, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(widths)
        self.x, self.model = self.x.double(), self.model.double()
        self.algorithm, self.lr, self.eps = algorithm, RATES[algorithm], eps
        self.inner_steps, self.warm_start = inner_steps, not restart
        self.inner_optimizer = SGD(lr=self.lr) if algorithm == "sgd" else Adam(lr=self.lr, eps=eps)

    def init_outer(self, generator: object) -> dict[str, Tensor]:
        return {"weight": torch.zeros(self.rows, dtype=torch.float64)}

    def batch_of(self, outer_step: int) -> Tensor:
        """Return the training rows of an outer step; its meta-rows are as far behind all rows."""
        first = outer_step * self.batch % self.rows
        return torch.arange(first, first + self.batch)

    def inner_batch(self, draw: Draw) -> Tensor:
        return self.batch_of(draw.outer_step)

    def outer_batch(self, draw: Draw) -> Tensor:
        return self.rows + self.batch_of(draw.outer_step)

    # The same losses of a module, for libraries that call one.

    def training_loss(
        self, phi: Tensor, module: Callable[[Tensor], Tensor], rows: Tensor
    ) -> Tensor:
        """Return g of a batch."""
        return (phi[rows].sigmoid() * self.module_losses(module, rows)).mean()

    def meta_loss(self, module: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return F on the meta-rows that go with a batch."""
        return self.module_losses(module, self.rows + rows).mean()

    def module_losses(self, module: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return the loss of each row."""
        logits = module(self.x[rows])
        return torch.nn.functional.cross_entropy(logits, self.y[rows], reduction="none")


@dataclass(frozen=True)
class Case:
    """One comparison: an outer step of a problem by one method.

    Args:
        problem: by size.
        estimator: metaopt's.
        outer_lr: rate of plain gradient descent on phi.
        steps: outer steps in a turn that is timed, by size.
    """

    problem: Mapping[str, Callable[[], Any]]
    estimator: Callable[[], Any]
    outer_lr: float
    steps: Mapping[str, int]

    def by_metaopt(self, size: str) -> Iterator[Tensor]:
        """Take metaopt's outer steps, and yield phi after each."""
        optimizer = Descent("sgd", lr=self.outer_lr)
        engine = Engine(self.problem[size](), self.estimator(), optimizer, outer_steps=10**6)
        (phi,) = optimizer.solution.values()
        for _ in engine:
            yield phi


def reweighting(estimator: Callable[[], Any], factor: int = 1, **settings: Any) -> Case:
    """Return a case of `Reweighting`, whose turns have `factor` times as many steps."""
    problems = {
        size: lambda widths=widths: Reweighting(widths, **settings)
        for size, widths in WIDTHS.items()
    }
    return Case(problems, estimator, 1.0, {"2.4 k": 8 * factor, "94 k": 2 * factor})


def quadratic(estimator: Callable[[], Any]) -> Case:
    """Return a case of benchmark_bilevel's quadratic."""
    size = "100 x 10"
    return Case({size: lambda: StochasticQuadratic(4096, 1024)}, estimator, 0.1, {size: 50})


def unroll() -> Unroll:
    """Return the unroll of K steps with one graph, as the other libraries have it."""
    return Unroll(K, schedule="whole")


TINY = 1e-30
"""An eps that is lost in double precision beside the root of any second moment that occurs here."""

CASES = {
    "unroll, SGD": reweighting(unroll, restart=True),
    "unroll, Adam": reweighting(unroll, restart=True, algorithm="adam"),
    f"unroll, Adam, eps {TINY:g}": reweighting(unroll, restart=True, algorithm="adam", eps=TINY),
    "one step and update": reweighting(lambda: Unroll(1), factor=6, inner_steps=1),
    "Neumann series": reweighting(lambda: Implicit(Neumann(TERMS, TERM_STEP), inner_steps=K)),
    "SOBA": quadratic(Soba),
    "SABA": quadratic(Saba),
}
"""By name; `page` says what they are."""

UNROLLS = [name for name in CASES if name.startswith(("unroll", "one step"))]
"""The cases that differentiate through the inner steps."""
