"""A fork of phi for each of several tasks at once: adapted by inner steps, and its distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree

if TYPE_CHECKING:
    from metaopt.engine.inner_optimizers import InnerOptimizer


def adapted(
    loss: Callable[[Tree, Tree, Any], Tensor], outer: Tree, tasks: Any, count: int, steps: int,
    optimizer: InnerOptimizer, start: Tree | None = None,
) -> list[Tree]:  # fmt: skip
    """Return theta of each task before and after each inner step on g, without a graph.

    What is measured of a learned start on tasks that no outer step has had, and what is made of it
    for a new one.

    Args:
        loss: g(phi, theta, tasks), the loss of each task, (count,), for theta and tasks with an
            axis in front: a problem's `inner_loss` (`batched_losses`).
        outer: phi, of one seed.
        tasks: the batch that all steps are taken on, with an axis of tasks in front.
        count: the length of this axis.
        steps: number of inner steps, >= 0.
        optimizer: takes them.
        start: theta_0 of every task; `None` for phi.

    Returns:
        steps + 1 trees whose tensors have the axis of tasks in front.
    """
    phi = tree.detach(outer)
    first = phi if start is None else tree.detach(start)
    theta = {k: v.expand(count, *v.shape) for k, v in first.items()}
    states, moments = [theta], optimizer.init(theta)
    for k in range(steps):
        with torch.enable_grad():
            leaves: Any = tree.leaves(theta)
            (slope,) = tree.gradient(loss(phi, leaves, tasks), leaves)
        with torch.no_grad(), tree.replicated():  # a norm is that of each task
            theta, moments = optimizer.update(theta, slope, moments, k)
        states.append(theta)
    return states


def distance(outer: Tree, inner: Tree, axes: int) -> Tensor:
    """Return |theta - phi|^2 of each task, over what is adapted, for a proximal term.

    Args:
        outer: phi, without the axes of tasks or with axes that broadcast over them.
        inner: theta, without buffers and frozen weights.
        axes: how many axes of each tensor of theta count tasks, as many as a loss has.
    """
    squares = [(value - outer[name]).square() for name, value in inner.items()]
    # A sum over no axes at all would be one over every axis.
    return torch.stack([
        square.sum(tuple(range(axes, square.ndim))) if square.ndim > axes else square
        for square in squares
    ]).sum(0)  # fmt: skip
