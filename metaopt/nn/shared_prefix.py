"""The beginning that several rows of tokens have in common, read once: its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def keeps_prefixes(model: Any) -> bool:
    """Return whether a causal model of transformers goes on from the keys and values of a prefix.

    Every layer must attend to all tokens before: a sliding window has dropped some of them, and a
    recurrent state is no row of keys.
    """
    if model._is_stateful or not model._supports_default_dynamic_cache():
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def places(present: Tensor) -> Tensor:
    """Return each token's place, counted from its row's own first one: padding must not shift it.

    Args:
        present: 1 for a token, 0 for padding, (B, W).
    """
    return (present.cumsum(-1) - 1).clamp(min=0)


def prefix_runs(ids: Tensor, present: Tensor) -> tuple[Tensor, list[int]]:
    """Return the first row of each run of equal rows, (runs,), and the lengths of the runs.

    Args:
        ids: tokens (B, W), padded on the left.
        present: 1 for a token, 0 for padding, (B, W).
    """
    marked = ids.masked_fill(present == 0, -1)  # a pad token may also be the end of a text
    _, counts = marked.unique_consecutive(dim=0, return_counts=True)
    return counts.cumsum(0) - counts, counts.tolist()


def repeated(cache: Any, counts: Sequence[int]) -> DynamicCache:
    """Return the cache with row i `counts[i]` times; derivatives go through it.

    The derivative of a view and a concatenation is a sum in a fixed order; that of an index adds
    atomically on a GPU, so that two equal updates would differ in their last digits.
    """

    def rows(x: Tensor) -> Tensor:
        each = zip(x.split(1), counts, strict=True)
        return torch.cat([row.expand(count, *row.shape[1:]) for row, count in each])

    return DynamicCache([(rows(layer.keys), rows(layer.values)) for layer in cache.layers])
