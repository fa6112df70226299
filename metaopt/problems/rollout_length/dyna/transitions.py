"""Transitions of many runs as rows of one tensor, which one indexing operation samples from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor


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
    """Return the length of a row."""
    return 2 * observation_size + 3


def pack(batch: Batch) -> Tensor:
    """Return the transitions as rows (R, B, w) of numbers."""
    rest = torch.stack([batch.reward, batch.terminal, batch.action.to(batch.reward.dtype)], -1)
    return torch.cat([batch.observation, batch.next_observation, rest], -1)


def unpack(rows: Tensor) -> Batch:
    """Return what `pack` was given; observations and numbers are views."""
    size = (rows.shape[-1] - 3) // 2
    return Batch(
        rows[..., :size], rows[..., -1].long(), rows[..., -3], rows[..., size:-3], rows[..., -2]
    )


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows (R, B, w) of `rows` (R, n, w), run by run, by index (R, B)."""
    runs, count, wide = rows.shape
    first = torch.arange(0, runs * count, count, device=rows.device).unsqueeze(1)
    return rows.reshape(-1, wide).index_select(0, (index + first).flatten()).view(runs, -1, wide)


def uniform_index(size: Tensor, batch: int, draw: Generator) -> Tensor:
    """Return integers (R, B), uniform in 0..size-1 for each run's size (R, 1); 0 where it is 0."""
    at = torch.rand(len(size), batch, generator=draw, device=size.device) * size
    return torch.minimum(at.long(), (size - 1).clamp(min=0))
