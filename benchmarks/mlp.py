"""The problem that the benchmarks share, and how they time a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from metaopt.engine.functional import functional_call
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, generator


class RowWeights(GradientProblem):
    """One weight per training row of a multi-layer perceptron, on random data in float32.

    Args:
        widths: layer sizes, input and classes included; 1.3 M parameters by default.
        batch: rows per batch.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 800, 800, 800, 10), batch: int = 64) -> None:
        self.inner_optimizer = SGD(lr=1e-2)
        draw = generator(0)
        self.batch, self.rows = batch, 512
        self.x = torch.randn(2 * self.rows, widths[0], generator=draw)
        self.y = torch.randint(widths[-1], (2 * self.rows,), generator=draw)
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.Tanh()]
        self.model = nn.Sequential(*layers[:-1])

    def init_outer(self, generator: Generator) -> Tree:
        return {"weight": torch.zeros(self.rows)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        return split_module(self.model)[0]

    def inner_batch(self, draw: Draw) -> Tensor:
        return torch.randint(self.rows, (self.batch,), generator=draw.generator)

    def outer_batch(self, draw: Draw) -> Tensor:
        return self.rows + torch.randint(self.rows, (self.batch,), generator=draw.generator)

    def losses(self, inner: Tree, rows: Tensor) -> Tensor:
        logits = functional_call(self.model, inner, self.x[rows])
        return nn.functional.cross_entropy(logits, self.y[rows], reduction="none")

    def inner_loss(self, outer: Tree, inner: Tree, batch: Tensor) -> Tensor:
        return (outer["weight"][batch].sigmoid() * self.losses(inner, batch)).mean()

    def outer_loss(self, outer: Tree, inner: Tree, batch: Tensor) -> Tensor:
        return self.losses(inner, batch).mean()


def least_seconds(calls: Mapping[str, Callable[[], object]], repeats: int = 9) -> dict[str, float]:
    """Return the least CPU time of each call, the calls taking turns.

    With one thread, CPU time leaves out what other programs on the machine take.
    """
    least = dict.fromkeys(calls, float("inf"))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.thread_time()
            call()
            if turn:  # the first turn warms up
                least[name] = min(least[name], time.thread_time() - started)
    return least
