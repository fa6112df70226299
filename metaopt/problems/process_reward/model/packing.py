"""Token sequences with a common beginning as one row, which a causal model reads once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Row:
    """A stem of token ids, and branches that continue it, each without seeing the others.

    Args:
        stem: ids, one at least.
        branches: ids of each continuation.
    """

    stem: list[int]
    branches: list[list[int]] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """Stem and branches, one after the other."""
        return [*self.stem, *(token for branch in self.branches for token in branch)]

    def __len__(self) -> int:
        return len(self.stem) + sum(map(len, self.branches))


@dataclass(frozen=True)
class Packed:
    """Rows as tensors, padded on the right.

    Args:
        ids: token ids, (B, T).
        real: which tokens are no padding, (B, T).
        positions: of each token in its own sequence: a branch goes on where the stem ends, (B, T).
        previous: index in the row of the token before it in its sequence, (B, T); 0 at the start.
        visible: which tokens (last axis) a token sees in attention, (B, T, T): of the stem and of
            its own branch, up to itself.
    """

    ids: Tensor
    real: Tensor
    positions: Tensor
    previous: Tensor
    visible: Tensor


def pack(rows: Sequence[Row], pad: int) -> Packed:
    """Return rows as tensors; `pad` is the id of what fills them up."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    branch = torch.full((len(rows), width), -1)  # of the padding, which then sees itself
    positions, previous = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.ids)
        stem = len(row.stem)
        start = 0
        for number, part in enumerate((row.stem, *row.branches)):
            place = slice(start, start + len(part))
            branch[i, place] = number
            positions[i, place] = torch.arange(len(part)) + (stem if number else 0)
            previous[i, place] = torch.arange(start, start + len(part)) - 1
            if number and part:
                previous[i, start] = stem - 1
            start += len(part)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = (branch[:, None] == 0) | (branch[:, None] == branch[..., None])
    return Packed(ids, branch >= 0, positions, previous.clamp(min=0), causal & same)
