"""Transitions of R runs in one tensor, which one indexing operation samples from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree


@tree.tagged("transitions")
class Batch(NamedTuple):
    """Transitions of R runs, B each.

    Args:
        observation, next_observation: (R, B, d).
        action: (R, B) integers.
        reward: (R, B).
        terminal: (R, B), 1 where nothing follows, else 0.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminal: Tensor


def width(observation_size: int) -> int:
    """Return how many numbers a packed transition takes."""
    return 2 * observation_size + 3


def pack(batch: Batch) -> Tensor:
    """Return the transitions in one tensor (R, B, w), actions as numbers."""
    rest = torch.stack([batch.reward, batch.terminal, batch.action.to(batch.reward.dtype)], -1)
    return torch.cat([batch.observation, batch.next_observation, rest], -1)


def unpack(packed: Tensor) -> Batch:
    """Return what `pack` was given; all but the actions are views."""
    d = (packed.shape[-1] - 3) // 2
    observation, after, (reward, terminal, action) = (
        packed[..., :d], packed[..., d:-3], packed[..., -3:].unbind(-1)
    )  # fmt: skip
    return Batch(observation, action.long(), reward, after, terminal)


def pick(packed: Tensor, index: Tensor) -> Batch:
    """Return the transitions (R, B) of `packed` (R, n, w) at each run's index (R, B)."""
    runs, count, w = packed.shape
    first = torch.arange(0, runs * count, count, device=packed.device).unsqueeze(1)
    flat = packed.reshape(-1, w).index_select(0, (index + first).flatten())
    return unpack(flat.view(runs, -1, w))


def uniform_index(size: Tensor, batch: int, draw: Generator) -> Tensor:
    """Return integers (R, B), uniform in 0..size-1 for each run's size (R, 1); 0 where it is 0."""
    place = torch.rand(len(size), batch, generator=draw, device=size.device) * size
    # Rounding may carry a number close to 1 times the size up to the size itself.
    return torch.minimum(place.long(), (size - 1).clamp(min=0))
