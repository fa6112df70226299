"""One inner step along a gradient that the estimator has computed itself."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt import distributed
from metaopt.core import Tree
from metaopt.inner import GradientProblem, GradientState


@torch.no_grad()
def step_along(
    problem: GradientProblem, outer: Tree, inner: GradientState, grads: Tree, loss: Tensor
) -> GradientState:
    """Take one step of the inner optimizer in place and return the state; as `advance` does.

    Args:
        grads: gradient by name, averaged over ranks here.
        loss: the loss to report with the state, a scalar.
    """
    mean = distributed.mean(grads)
    problem.inner_optimizer.update_(inner.params, mean, inner.optimizer, inner.step)
    buffers = problem.carry(outer, inner.params, inner.buffers, inner.step + 1)
    return inner._replace(buffers=buffers, step=inner.step + 1, loss=loss.detach())
