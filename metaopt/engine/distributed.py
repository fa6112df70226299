"""Averages across ranks under torchrun; identities in a single process.

`torch.autograd.grad` does not trigger DistributedDataParallel's synchronisation, so every average
is explicit: inner gradients, the vector v = dF/dtheta before an implicit solve, and the feedback.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metaopt.engine.protocols import Tree

_AVAILABLE = dist.is_available()


def _initialized() -> bool:
    # Asked several times in each inner step: what `dist.is_initialized` does, without its detours.
    return _AVAILABLE and dist.group.WORLD is not None


def rank() -> int:
    """Return this process's rank, 0 in a single process."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _initialized() else 1


def mean(values: Tree) -> Tree:
    """Return the average of each tensor over all ranks; the argument itself when there is one."""
    if world_size() == 1:
        return values
    with torch.no_grad():
        return {k: _mean(v) for k, v in values.items()}


def on_any_rank(flags: dict[str, bool], like: Tensor) -> dict[str, bool]:
    """Return which flags are set on some rank.

    Args:
        flags: under the same names on every rank.
        like: a tensor on the device that ranks talk through.
    """
    if world_size() == 1:
        return flags
    counts = torch.tensor([float(v) for v in flags.values()], device=like.device)
    dist.all_reduce(counts)
    return dict(zip(flags, (counts > 0).tolist(), strict=True))


def mean_on_graph(values: Tree) -> Tree:
    """Return the average over all ranks, differentiably: adjoints are averaged on the way back."""
    if world_size() == 1:
        return values
    return {k: _Mean.apply(v) for k, v in values.items()}  # type: ignore[no-untyped-call]


class _Mean(torch.autograd.Function):
    """The average over ranks is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _mean(value)

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> Tensor:
        return _mean(adjoint)


def _mean(value: Tensor) -> Tensor:
    total = value.detach().clone()  # all_reduce writes into its argument
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def largest(values: Tensor) -> Tensor:
    """Return the largest over all ranks, element by element; the argument itself on one."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total, dist.ReduceOp.MAX)
    return total


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order; each must be pickled, which is slow."""
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def common(values: Collection[int]) -> list[int]:
    """Return, in ascending order, the numbers that all ranks have."""
    if world_size() == 1:
        return sorted(values)
    return sorted(set.intersection(*map(set, gather(list(values)))))


def wait_for_all() -> None:
    """Return once all ranks have come here."""
    if world_size() > 1:
        dist.barrier()
