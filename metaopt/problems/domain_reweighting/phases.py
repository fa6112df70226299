"""Models trained before and after the outer loop: references, retraining, the uniform baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from metaopt.engine.inner import GradientProblem, GradientState
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator
from metaopt.problems.domain_reweighting.batches import Rows
from metaopt.problems.domain_reweighting.task import ReweightingTask

OWN = ("observed.", "uniform.", "buffer.", "reference")
"""How names of the inner level begin that are not parameters of the task."""

Draw = Callable[[Generator], Rows]


def part(buffers: Tree, prefix: str) -> Tree:
    """Return what is stored under a prefix, by the rest of its name."""
    return {k.removeprefix(prefix): v for k, v in buffers.items() if k.startswith(prefix)}


def model(inner: Tree) -> Tree:
    """Return the task's tensors under the task's own names."""
    own = {k: v for k, v in inner.items() if not k.startswith(OWN)}
    return own | part(inner, "buffer.")


def untrained(problem: GradientProblem, task: ReweightingTask, key: int) -> GradientState:
    """Return a model that has learned nothing."""
    params, own = task.init(generator(key))
    buffers = {f"buffer.{k}": v for k, v in own.items()}
    loss = torch.full((), torch.nan)
    return GradientState(params, buffers, problem.inner_optimizer.init(params), 0, loss)


def fit(
    problem: GradientProblem, state: GradientState, draw: Draw, steps: int, key: int,
    outer: Tree | None = None,
) -> GradientState:  # fmt: skip
    """Take inner steps in place, on batches from `draw`, with their weights or those of `outer`."""
    with torch.enable_grad():
        for k in range(steps):
            batch = draw(generator(fold(key, k, "batch")))
            state = problem.advance(outer or {}, state, fold(key, k), batch)
    return state


@torch.no_grad()
def reference_losses(
    problem: GradientProblem, task: ReweightingTask, draw: Draw, steps: int, key: int
) -> Tensor:
    """Return the losses (..., n) of all training rows under a model fitted to `draw`."""
    state = fit(problem, untrained(problem, task, key), draw, steps, key)
    tensors = model(state.params | state.buffers)
    parts = torch.arange(len(task.domain)).split(256)
    return torch.cat([task.row_losses(tensors, rows, train=False) for rows in parts], -1)


def kept(losses: Tensor, share: float) -> Tensor:
    """Return weights (n,) of mean 1: equal for the share of rows with the least loss, else 0."""
    found = torch.zeros_like(losses)
    found[losses.argsort(stable=True)[: max(1, round(share * len(losses)))]] = 1
    return found / found.mean()
