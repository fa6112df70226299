"""A memory of rows for off-policy learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Generator

from metaopt.engine import tree
from metaopt.engine.protocols import Tree


@final
class Replay:
    """A ring of rows, each a row of several named tensors; the oldest make room for new ones.

    Args:
        capacity: largest number of rows, >= 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"Replay needs capacity >= 1; got {capacity}.")
        self.capacity = capacity
        self._rows: Tree = {}
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, rows: Tree) -> None:
        """Append rows: tensors of equal length, with the names and row shapes of the first call."""
        if not self._rows:
            self._rows = {k: v.new_empty(self.capacity, *v.shape[1:]) for k, v in rows.items()}
        count = len(next(iter(rows.values())))
        places = (self._added + torch.arange(count)) % self.capacity
        first = max(0, count - self.capacity)  # of more rows than fit, the last ones stay
        for name, ring in self._rows.items():
            ring[places[first:]] = rows[name][first:]
        self._added += count

    def sample(self, shape: Sequence[int], generator: Generator) -> Tree:
        """Return rows drawn uniformly with replacement, as tensors of shape [*shape, ...]."""
        index = torch.randint(len(self), tuple(shape), generator=generator)
        return {name: ring[index] for name, ring in self._rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the rows, in the order of the ring, and how many were ever added."""
        rows = {name: ring[: len(self)].clone() for name, ring in self._rows.items()}
        return {"rows": rows, "added": self._added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the rows were kept under another capacity.
        """
        rows, self._added = tree.clone(state["rows"]), state["added"]
        held = len(next(iter(rows.values()))) if rows else 0
        if held != len(self):
            raise ValueError(
                f"the checkpoint's replay holds {held} rows of {self._added}, which a replay of "
                f"capacity={self.capacity} would not; resume with the capacity of the checkpoint."
            )
        self._rows = {k: v.new_empty(self.capacity, *v.shape[1:]) for k, v in rows.items()}
        for name, ring in self._rows.items():
            ring[:held] = rows[name]
