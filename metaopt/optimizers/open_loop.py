"""Optimizers whose proposals depend on the step and the key, not on the feedback."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback


class OpenLoop(ABC):
    """Proposes without looking back and keeps the best of what was tried.

    Values are comparable only where every inner run starts alike: use it with problems that do
    not warm-start (`warm_start=false`), or read the values as those of one long run.
    """

    _initial: Any = None
    _outer: Any = None
    _best: Any = None
    _value: float = math.inf
    _step: int = 0
    _again: bool = False

    @abstractmethod
    def _propose(self, initial: Any, step: int, key: int) -> Any:
        """Return the outer variable of a step, or `None` to ask for the best again."""

    @final
    def init(self, outer: Any) -> None:
        """Keep the first outer variable: proposals take its shapes, dtypes and names."""
        self._initial = self._best = tree.clone(outer)

    @final
    def ask(self, key: int) -> Any:
        """Return the proposal of this step."""
        proposal = self._propose(self._initial, self._step, key)
        self._again = proposal is None
        self._outer = self._best if proposal is None else proposal
        return self._outer

    @final
    def tell(self, feedback: Feedback) -> None:
        """Keep the proposal if its value is the lowest so far.

        Raises:
            RuntimeError: nothing has been asked for since the last `tell`.
        """
        if self._outer is None:
            raise RuntimeError(f"{type(self).__name__}.tell needs an ask first.")
        value = float(feedback.value)
        if value < self._value and not self._again:
            self._best, self._value = tree.clone(self._outer), value
        self._outer, self._step = None, self._step + 1

    @property
    @final
    def solution(self) -> Any:
        """The best of the proposals so far; the first outer variable before the first."""
        return self._best

    @final
    def state_dict(self) -> dict[str, Any]:
        """Return the best proposal, its value and the number of steps."""
        return {"best": self._best, "value": self._value, "step": self._step}

    @final
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._best, self._value, self._step = state["best"], state["value"], state["step"]
