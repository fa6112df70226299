"""A memory of transitions for off-policy learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Generator, Tensor

from metaopt.engine.ranges import check_ranges
from metaopt.environments.transitions import Batch, pack, unpack


@final
class Replay:
    """A ring of transitions of one learner; the oldest make room for new ones.

    Args:
        capacity: largest number of transitions, >= 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        check_ranges(self, "capacity >= 1")
        self._ring: Tensor | None = None
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    @property
    def packed(self) -> Tensor:
        """All that is held, packed, (n, w), in the order of the ring."""
        return torch.empty(0, 3) if self._ring is None else self._ring[: len(self)]

    def add(self, made: Batch) -> None:
        """Append transitions, tensors (n, ...), of the sizes of the first call."""
        new = pack(made)
        if self._ring is None:
            self._ring = new.new_empty(self.capacity, new.shape[1])
        places = (self._added + torch.arange(len(new))) % self.capacity
        first = max(0, len(new) - self.capacity)  # of more than fit, the last ones stay
        self._ring[places[first:]] = new[first:]
        self._added += len(new)

    def sample(self, count: int, batch: int, generator: Generator) -> Iterator[Batch]:
        """Yield `count` batches (1, batch, ...), drawn uniformly with replacement, all at once."""
        index = torch.randint(len(self), (count, batch), generator=generator)
        yield from (unpack(chosen.unsqueeze(0)) for chosen in self.packed[index])

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the transitions, in the ring's order, and how many were ever added."""
        return {"rows": self.packed.clone(), "added": self._added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        packed, self._added = state["rows"], state["added"]
        self._ring = None
        if self._added:
            self._ring = packed.new_empty(self.capacity, packed.shape[1])
            self._ring[: len(packed)] = packed
