"""Where the inner states that a reverse pass keeps are: in memory or on disk."""

from __future__ import annotations

from typing import Protocol

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState


class Store(Protocol):
    """Inner states by the number of steps taken before them."""

    @property
    def kept(self) -> list[int]:
        """The numbers of the states that are there, ascending."""
        ...

    def put(self, step: int, state: GradientState) -> GradientState:
        """Keep a state beyond the last one; return an equal one, which may be stepped in place."""
        ...

    def get(self) -> GradientState:
        """Return a copy of the last state, which may be stepped in place."""
        ...

    def pop(self) -> GradientState:
        """Return the last state and forget it."""
        ...


class MemoryStore:
    """States in memory. The first one stays the caller's own tensors, which nothing changes."""

    def __init__(self) -> None:
        self._states: dict[int, GradientState] = {}

    @property
    def kept(self) -> list[int]:
        """The numbers of the states that are there, ascending."""
        return list(self._states)

    def put(self, step: int, state: GradientState) -> GradientState:
        """Keep a state beyond the last one; return a copy."""
        self._states[step] = state
        return tree.clone(state)

    def get(self) -> GradientState:
        """Return a copy of the last state."""
        return tree.clone(self._states[self.kept[-1]])

    def pop(self) -> GradientState:
        """Return the last state and forget it."""
        return self._states.pop(self.kept[-1])
