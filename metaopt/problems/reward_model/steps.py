"""The inner level of MetaRM: what its step ascends, and how long the step is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.engine.inner_optimizers import State, safe_sqrt
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator


def difference(rewards: Tensor) -> Tensor:
    """Return how far apart k rewards of one prompt are, in [(k - 1) / (2 k), (k - 1) / k).

    J = (2 / k^2) sum_{i < j} sigma(|r_i - r_j|).

    It needs no label. The slope of sigma is largest for the smallest gaps, so ascent on J mostly
    pushes near-ties apart, in the order they have already; at an exact tie the subgradient is 0.

    Args:
        rewards: (..., k), k >= 2.

    Returns:
        (...), the shape without the last axis.

    Raises:
        ValueError: fewer than two rewards.

    References: Wang et al., Secrets of RLHF Part II, arXiv 2401.06080, 2024; Dou et al., MetaRM,
    arXiv 2405.00438, 2024 (AAAI 2025).
    """
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError(f"a difference needs two or more rewards a prompt; got {k}.")
    first, second = torch.triu_indices(k, k, 1, device=rewards.device)
    gaps = (rewards[..., first] - rewards[..., second]).abs()
    return 2 / k**2 * torch.sigmoid(gaps).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A step of length `lr` for each of R models: theta_i <- theta_i - lr g_i / |g_i|.

    The first axis of every tensor counts models, and |g_i| is taken over all tensors of model i. A
    model whose gradient is 0 stays where it is.

    Args:
        lr: length rho of the step, >= 0.
    """

    lr: float

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"Unit needs lr >= 0; got {self.lr}.")

    def init(self, params: Tree) -> State:
        """Return no state."""
        return {}

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters after one step; new tensors, differentiable."""
        squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)
        length = safe_sqrt(squares)
        rate = self.lr / torch.where(length > 0, length, 1.0)
        return {k: p - grads[k] * _column(rate, p) for k, p in params.items()}, state

    @torch.no_grad()
    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step in place."""
        for name, value in self.update(params, grads, state, step)[0].items():
            params[name].copy_(value)

    def learning_rate(self, step: int) -> float:
        """Return lr."""
        return self.lr


def direction(params: Tree, draw: Generator) -> Tree:
    """Return a random direction for each model, uniform on the unit sphere of its parameters.

    Model i's depends on `draw` and i alone.

    Args:
        params: the first axis of every tensor counts models.
        draw: one number is drawn from it.
    """
    models = len(next(iter(params.values())))
    key = int(torch.randint(2**62, (), generator=draw))
    each = [generator(fold(key, i)) for i in range(models)]
    drawn = {
        k: torch.stack([torch.randn(p.shape[1:], generator=g, dtype=p.dtype) for g in each])
        for k, p in params.items()
    }
    length = torch.stack([d.flatten(1).square().sum(1) for d in drawn.values()]).sum(0).sqrt()
    return {k: (d / _column(length, d)).to(params[k].device) for k, d in drawn.items()}


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
