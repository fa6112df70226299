"""Tasks: what few-shot learning draws, and the sinusoids of Finn et al."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from metaopt.engine.random import generator
from metaopt.engine.ranges import check_ranges

Task = Any
"""Tensors that say all of a task; those of several have more axes in front."""

Examples = tuple[Tensor, Tensor]
"""Inputs (..., n, inputs), and targets (..., n, outputs) or classes (..., n)."""

TEST_SEED = 2017
"""Of the test tasks, which are the same for all seeds of a run."""


class Tasks(Protocol):
    """A distribution of tasks.

    Attributes:
        inputs, outputs: size of one input and of one output.
        test: the test tasks, with an axis of them in front.
        score: what `scores` are called.
    """

    inputs: int
    outputs: int
    test: Task
    score: str

    def draw(self, generator: Generator) -> Task:
        """Return one task."""
        ...

    def support(self, task: Task) -> Examples:
        """Return the examples that are adapted to."""
        ...

    def query(self, task: Task) -> Examples:
        """Return the examples that judge the adapted parameters."""
        ...

    def test_query(self, task: Task) -> Examples:
        """Return the examples that judge them on a test task."""
        ...

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the examples of each task, (...)."""
        ...

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what is reported of each task, (...)."""
        ...


class Sinusoids:
    """y = a sin(x - p): a in [0.1, 5], p in [0, pi], x in [-5, 5], all uniform.

    A task is one tensor (2 + shots + queries,): a, p, and the points of support and query set.
    Test tasks are judged at 100 points that divide [-5, 5] evenly.

    Args:
        shots: points of the support set, >= 1.
        queries: points of the query set, >= 1.
        test_tasks: number of test tasks, >= 1.
    """

    inputs = outputs = 1
    score = "error"

    def __init__(self, shots: int = 10, queries: int = 10, test_tasks: int = 500) -> None:
        self.shots, self.queries, self.test_tasks = shots, queries, test_tasks
        check_ranges(self, "shots >= 1", "queries >= 1", "test_tasks >= 1")
        points = shots + queries
        self.lowest = torch.tensor([0.1, 0.0, *[-5.0] * points])
        self.width = torch.tensor([4.9, math.pi, *[10.0] * points])
        draw = generator(TEST_SEED)
        self.test = torch.stack([self.draw(draw) for _ in range(test_tasks)])

    def draw(self, generator: Generator) -> Tensor:
        """Return one task, (2 + shots + queries,)."""
        uniform = torch.rand(len(self.width), generator=generator)
        return torch.addcmul(self.lowest, uniform, self.width)

    def support(self, task: Tensor) -> Examples:
        """Return x and y of the support set, (..., shots, 1)."""
        return self.at(task, task[..., 2 : 2 + self.shots])

    def query(self, task: Tensor) -> Examples:
        """Return x and y of the query set, (..., queries, 1)."""
        return self.at(task, task[..., 2 + self.shots :])

    def test_query(self, task: Tensor) -> Examples:
        """Return x and y at 100 points, (..., 100, 1)."""
        return self.at(task, torch.linspace(-5, 5, 100).to(task))

    def at(self, task: Tensor, x: Tensor) -> Examples:
        """Return points (..., n) and the sinusoid there, as columns."""
        y = task[..., :1] * torch.sin(x - task[..., 1:2])
        return x.unsqueeze(-1), y.unsqueeze(-1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared errors, (...)."""
        return (outputs - targets).square().mean((-2, -1))

    scores = losses
