"""What a rater reads of a text: counts of n-grams, a frozen encoder's state, or its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol
from zlib import crc32

import torch
from torch import Tensor

from metaopt.engine.ranges import check_ranges
from metaopt.nn.encoder import Encoder


class Features(Protocol):
    """Texts as tensors, one row each.

    Attributes:
        kind: name under which a saved rater finds the class again.
        settings: arguments that make the same features again, as JSON has them.
    """

    kind: str
    settings: Mapping[str, Any]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the features (n, ...) of texts."""
        ...


class NGrams:
    """Hashed counts of character n-grams, and how often a text occurs.

    For each order n: the counts of the text's n-grams in `buckets` buckets, divided by their norm.
    Two more features are logarithms: of the number of equal texts among those that are read with
    it, since the rater would else not see duplicates, and of one plus the length.

    Args:
        orders: the n, each >= 1.
        buckets: per order, >= 2; n-grams that share one are not told apart.

    Cost: 4 n d bytes for n texts and d = buckets * len(orders) + 2 features.
    """

    kind: str = "ngrams"

    def __init__(self, orders: Sequence[int] = (1, 2), buckets: int = 512) -> None:
        self.orders, self.buckets = tuple(orders), buckets
        check_ranges(self, "buckets >= 2")
        if not self.orders or min(self.orders) < 1:
            raise ValueError(f"NGrams needs orders >= 1, at least one; got {list(orders)}.")
        self.settings: Mapping[str, Any] = {"orders": list(self.orders), "buckets": buckets}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the features (n, d)."""
        copies = Counter(texts)
        features = torch.zeros(len(texts), len(self.orders), self.buckets)
        for i, text in enumerate(texts):
            for k, n in enumerate(self.orders):
                for gram, count in Counter(
                    text[j : j + n] for j in range(len(text) - n + 1)
                ).items():
                    features[i, k, bucket(gram, self.buckets)] += count
        features /= features.norm(dim=-1, keepdim=True).clamp(min=1)
        logs = torch.log(
            torch.tensor([[copies[text], 1 + len(text)] for text in texts], dtype=torch.float32)
        )
        return torch.cat([features.flatten(1), logs.reshape(len(texts), 2) / 4], 1)


class Bytes:
    """The first bytes of a text in UTF-8, 1 to 256, and 0 where it has ended.

    Args:
        length: bytes that are read, >= 1.
    """

    kind: str = "bytes"

    def __init__(self, length: int = 128) -> None:
        self.length = length
        check_ranges(self, "length >= 1")
        self.settings: Mapping[str, Any] = {"length": length}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the bytes, integers (n, length)."""
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        for i, text in enumerate(texts):
            raw = text.encode("utf-8", "surrogatepass")[: self.length]
            rows[i, : len(raw)] = torch.tensor(list(raw), dtype=torch.long) + 1
        return rows


FEATURES: dict[str, Callable[..., Features]] = {
    "ngrams": NGrams, "encoder": Encoder, "bytes": Bytes,
}  # fmt: skip
"""The classes by their `kind`."""


@lru_cache(1 << 16)
def bucket(gram: str, buckets: int) -> int:
    """Return the bucket of an n-gram."""
    # Python's own hash differs between processes.
    return crc32(gram.encode("utf-8", "surrogatepass")) % buckets
