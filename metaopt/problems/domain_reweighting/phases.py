"""Models trained before and after the outer loop: references, retraining, the uniform baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.problems.domain_reweighting.batches import Rows
from metaopt.problems.domain_reweighting.task import ReweightingTask

Sample = Callable[[int, Generator], Rows]
"""Returns the batch of a step, drawn from a generator."""


def untrained(loop: InnerLoop, task: ReweightingTask, key: int) -> GradientState:
    """Return a model that has learned nothing."""
    params, buffers = task.init(generator(key))
    loss = torch.full((), torch.nan)
    moments = loop.optimizer({}, 0).init(params)
    return GradientState(params, buffers, {}, moments, 0, loss)


def fit(
    loop: InnerLoop, inner: GradientState, sample: Sample, steps: int, key: int,
    outer: Tree | None = None, follow: Callable[[int, GradientState], None] | None = None,
) -> GradientState:  # fmt: skip
    """Take inner steps in place, on sampled batches, with their weights or those of `outer`.

    `follow` gets the number of each step and the state after it.
    """
    with torch.enable_grad():  # also below `reference_losses`, which needs none itself
        for k in range(steps):
            batch = sample(k, generator(fold(key, k, "batch")))
            draw = Draw(fold(key, k), inner_step=k, total_inner_step=inner.step, use="retrain")
            inner = loop.step_(outer or {}, inner, draw, batch)
            if follow is not None:
                follow(k, inner)
    return inner


@torch.no_grad()
def reference_losses(
    loop: InnerLoop, task: ReweightingTask, sample: Sample, steps: int, key: int
) -> Tensor:
    """Return the losses (n,) of all training examples under a model fitted to batches, or
    their mean over several models."""
    inner = fit(loop, untrained(loop, task, key), sample, steps, key)
    tensors = inner.params | inner.buffers
    parts = torch.arange(len(task.domain)).split(256)
    losses = torch.cat([task.row_losses(tensors, rows, train=False) for rows in parts], -1)
    return losses.flatten(0, -2).mean(0) if losses.ndim > 1 else losses


def filter_weights(losses: Tensor, share: float) -> Tensor:
    """Return weights (n,) of mean 1: equal for the share of least loss, 0 for others."""
    weights = torch.zeros_like(losses)
    weights[losses.argsort(stable=True)[: max(1, round(share * len(losses)))]] = 1
    return weights / weights.mean()
