"""The part of a batch that one of several ranks takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from metaopt.engine import distributed

PLAIN = (str, bytes, int, float, bool, type(None))
"""What a batch may hold for all of its examples together."""


OWN_BATCHES = "let each process draw a batch of its own (the command's ranks=own)"
"""What messages offer where batches cannot be split."""


class PartsError(ValueError):
    """A batch cannot be split over the ranks, or the loss is no mean over its examples."""


def part(batch: Any, problem: str, share: tuple[int, int] | None = None) -> Any:
    """Return examples r::n of every tensor of a batch; the batch itself in one process.

    The first axis of each tensor counts examples, and tensors may have different numbers of them;
    so do lists of texts and numbers. What has no axis belongs to all examples.

    Args:
        batch: a nest of tensors in dicts, lists, tuples and data classes.
        problem: whose it is, for the message.
        share: (r, n); `None` for that of this rank.

    Raises:
        PartsError: n does not divide a number of examples, or a part of the batch is of another
            kind.
    """
    place, count = share or distributed.share_of_batch()
    if count == 1:
        return batch

    def of(examples: int) -> slice:
        if examples % count:
            raise PartsError(
                f"a batch of {problem} has {examples} examples, which {count} processes cannot "
                f"share out equally; make it a multiple of {count}, start another number of "
                f"processes, or {OWN_BATCHES}."
            )
        return slice(place, None, count)

    return _chosen(batch, problem, of)


def first_examples(batch: Any, problem: str, most: int) -> Any:
    """Return the first examples of every tensor of a batch, at most so many."""
    return _chosen(batch, problem, lambda examples: slice(most))


def _chosen(node: Any, problem: str, examples: Callable[[int], slice]) -> Any:
    if isinstance(node, Tensor):
        return node[examples(len(node))] if node.ndim else node
    if isinstance(node, PLAIN):
        return node
    if isinstance(node, list) and node and all(isinstance(v, PLAIN) for v in node):
        return node[examples(len(node))]
    if isinstance(node, Mapping):
        made: Any = type(node)
        return made({k: _chosen(v, problem, examples) for k, v in node.items()})
    if isinstance(node, (list, tuple)):
        parts = [_chosen(v, problem, examples) for v in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node) if field.init]
        fields = {name: _chosen(getattr(node, name), problem, examples) for name in names}
        return dataclasses.replace(node, **fields)
    raise PartsError(
        f"a batch of {problem} holds {type(node).__name__}, of which processes cannot split the "
        f"examples; return tensors in dicts, lists, tuples or data classes, or {OWN_BATCHES}."
    )
