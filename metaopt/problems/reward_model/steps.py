"""What the inner step of MetaRM ascends: the spread of rewards, or a random direction."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator


def reward_spread(rewards: Tensor) -> Tensor:
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
        raise ValueError(f"a spread needs two or more rewards a prompt; got {k}.")
    first, second = torch.triu_indices(k, k, 1, device=rewards.device)
    gaps = (rewards[..., first] - rewards[..., second]).abs()
    return 2 / k**2 * torch.sigmoid(gaps).sum(-1)


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
