"""Averages across ranks under torchrun; identities in a single process.

`torch.autograd.grad` does not trigger DistributedDataParallel's synchronisation, so every average
is explicit: inner gradients, the vector v = dF/dtheta before an implicit solve, and the feedback.

Either each rank draws batches of its own, or all draw the same ones and each takes its part of the
examples (`splitting_batches`), so that a run has the results of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metaopt.engine.protocols import Tree

T = TypeVar("T")
_AVAILABLE = dist.is_available()
_splits = False  # of the process, as its group is: autograd's own threads draw batches, too


def _initialized() -> bool:
    # Asked several times in each inner step: what `dist.is_initialized` does, without its detours.
    return _AVAILABLE and dist.group.WORLD is not None


def rank() -> int:
    """Return this process's rank, 0 in a single process."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _initialized() else 1


@contextmanager
def splitting_batches(splits: bool = True) -> Iterator[None]:
    """Say whether the ranks split batches in the block, or draw batches of their own."""
    global _splits
    before, _splits = _splits, splits
    try:
        yield
    finally:
        _splits = before


def share_of_batch() -> tuple[int, int]:
    """Return (r, n) where this rank takes examples r::n of a batch; (0, 1) for all of them."""
    return (rank(), world_size()) if _splits else (0, 1)


def draw_rank() -> int:
    """Return the rank whose batches are drawn here: the first one's where ranks split them."""
    return 0 if _splits else rank()


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


def mean_on_graph(values: Tree, inputs: Tree) -> Tree:
    """Return the average over all ranks, differentiably: adjoints are averaged on the way back.

    Args:
        values: what is averaged.
        inputs: what every derivative of the averages is taken in, among others.
    """
    if world_size() == 1:
        return values
    means: Any = _Mean.apply(len(values), *values.values(), *inputs.values())  # type: ignore[no-untyped-call]
    return dict(zip(values, means, strict=True))


class _Mean(torch.autograd.Function):
    """The averages over ranks of the first tensors; averaging is its own adjoint.

    One node for all of them, and behind it the inputs: autograd leaves out what leads to no input,
    such as the gradient of a weight that a rank's batch does not use, and the other ranks would
    wait for its adjoint.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.count, ctx.rest = count, len(tensors) - count
        return tuple(map(_mean, tensors[:count]))

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> Any:
        # May be differentiated, too.
        means: Any = _Mean.apply(ctx.count, *adjoints)  # type: ignore[no-untyped-call]
        return (None, *means, *[None] * ctx.rest)


def _mean(value: Tensor) -> Tensor:
    # all_reduce writes into its argument, and adds entry by entry as they lie in memory: gradients
    # may lie otherwise on another rank, such as one that does not use a weight and has zeros.
    total = value.detach().clone(memory_format=torch.contiguous_format)
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


def from_first(function: Callable[[], T]) -> T:
    """Return what a function returns on rank 0, which alone calls it, on all ranks.

    Raises:
        Exception: what it raises on rank 0; `ValueError` with its message on the others.
    """
    if world_size() == 1:
        return function()
    result: list[Any] = [None, None]
    error: Exception | None = None
    if rank() == 0:
        try:
            result[0] = function()
        except Exception as raised:
            error, result[1] = raised, str(raised)
    dist.broadcast_object_list(result)
    if error is not None:
        raise error
    if result[1] is not None:
        raise ValueError(result[1])
    value: T = result[0]
    return value


def different(named: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not the same, bit for bit, on all ranks."""
    if world_size() == 1:
        return []
    others = gather({name: _digest(value) for name, value in named.items()})
    names = dict.fromkeys(name for digests in others for name in digests)
    return [name for name in names if len({digests.get(name) for digests in others}) > 1]


def _digest(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake2b(flat.numpy().tobytes(), digest_size=16).digest()


def wait_for_all() -> None:
    """Return once all ranks have come here."""
    if world_size() > 1:
        dist.barrier()
