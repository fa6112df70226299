"""An outer variable that is a fixed function of the step: the baselines of learned schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from metaopt import tree
from metaopt.core import Feedback
from metaopt.optimizers.spaces import substitute


@dataclass(frozen=True)
class Constant:
    """The same value at every step; the problem's initial outer variable when it is `None`."""

    value: Any = None

    def __call__(self, step: int) -> Any:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """Straight lines through (step, value) points, constant before the first and after the last.

    Args:
        points: at least one [step, value], steps rising: [[0, 0], [6, 32], [12, 0]] rises for six
            steps and falls for six.
        integer: round to the nearest whole number (not down, so that every peak is reached).
    """

    points: Sequence[Sequence[float]]
    integer: bool = False

    def __post_init__(self) -> None:
        steps = [p[0] for p in self.points if len(p) == 2]
        rising = all(a < b for a, b in pairwise(steps))
        if not steps or len(steps) != len(self.points) or not rising:
            raise ValueError(
                f"Linear needs points [step, value] with rising steps; got {self.points!r}."
            )

    def __call__(self, step: int) -> Any:
        """Return the value at `step`."""
        value = self._at(step)
        return round(value) if self.integer else value

    def _at(self, step: int) -> float:
        if step <= self.points[0][0]:
            return self.points[0][1]
        for (a, u), (b, v) in pairwise(self.points):
            if step <= b:
                return u + (v - u) * (step - a) / (b - a)
        return self.points[-1][1]


@dataclass(frozen=True)
class Listed:
    """One value a step, the last one from then on."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not self.values:
            raise ValueError(f"Listed needs a list of at least one value; got {self.values!r}.")

    def __call__(self, step: int) -> Any:
        """Return the value at `step`."""
        return self.values[min(step, len(self.values) - 1)]


@final
class Schedule:
    """Set the outer variable by the step; steps count from the last `Feedback.done`.

    In an episodic problem the schedule therefore starts again with each episode; elsewhere the
    step is the outer step.

    Args:
        function: the value at a step (`Constant`, `Linear`, `Listed`, or any callable). In an
            outer variable with names a mapping sets some of them, and a number fills every tensor.
    """

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function
        self._initial: Any = None
        self._step = 0

    def init(self, outer: Any) -> None:
        """Keep the first outer variable, whose shapes, dtypes and names the values take."""
        self._initial = tree.clone(outer)

    def ask(self, key: int) -> Any:
        """Return the value at this step."""
        return self._at(self._step)

    def tell(self, feedback: Feedback) -> None:
        """Count the step, or start again when the episode is done."""
        self._step = 0 if feedback.done else self._step + 1

    @property
    def solution(self) -> Any:
        """The value last asked for; after the end of an episode, the first of the next."""
        return self._at(max(0, self._step - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the step."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._step = state["step"]

    def _at(self, step: int) -> Any:
        value = self.function(step)
        return self._initial if value is None else substitute(self._initial, value)
