"""A memory of transitions for off-policy learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.dyna.transitions import Batch, pack, unpack


@final
class Replay:
    """A ring of transitions of one learner; the oldest make room for new ones.

    Args:
        capacity: largest number of transitions, >= 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"Replay needs capacity >= 1; got {capacity}.")
        self.capacity = capacity
        self._ring: Tensor | None = None
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def transitions(self) -> Batch:
        """Return all that is held, tensors (n, ...), in the order of the ring."""
        return unpack(self._rows())

    def add(self, made: Batch) -> None:
        """Append transitions, tensors (n, ...), of the sizes of the first call."""
        rows = pack(made)
        if self._ring is None:
            self._ring = rows.new_empty(self.capacity, rows.shape[1])
        places = (self._added + torch.arange(len(rows))) % self.capacity
        first = max(0, len(rows) - self.capacity)  # of more than fit, the last ones stay
        self._ring[places[first:]] = rows[first:]
        self._added += len(rows)

    def sample(self, count: int, batch: int, generator: Generator) -> Iterator[Batch]:
        """Yield `count` batches (1, batch, ...), drawn uniformly with replacement, all at once."""
        index = torch.randint(len(self), (count, batch), generator=generator)
        yield from (unpack(rows.unsqueeze(0)) for rows in self._rows()[index])

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the rows, in the order of the ring, and how many were ever added."""
        return {"rows": self._rows().clone(), "added": self._added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the rows were held under another capacity.
        """
        rows, self._added = state["rows"], state["added"]
        if len(rows) != len(self):
            raise ValueError(
                f"the checkpoint's replay holds {len(rows)} of {self._added} transitions, which a "
                f"replay of capacity={self.capacity} would not; resume with the capacity of the "
                "checkpoint."
            )
        self._ring = rows.new_empty(self.capacity, rows.shape[1]) if len(rows) else None
        if self._ring is not None:
            self._ring[: len(rows)] = rows

    def _rows(self) -> Tensor:
        return torch.empty(0, 3) if self._ring is None else self._ring[: len(self)]
