"""An outer variable that is a fixed function of the step: the baselines of learned schedules."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback
from metaopt.optimizers.spaces import substitute


@dataclass(frozen=True)
class Constant:
    """The same value at every step; the problem's initial outer variable when it is `None`."""

    value: Any = None

    def __call__(self, step: int) -> Any:
        """Return the value."""
        return self.value

    @property
    def largest(self) -> float | None:
        """The value, where it is a number."""
        return self.value if isinstance(self.value, (int, float)) else None


@dataclass(frozen=True)
class Linear:
    """Straight lines through (step, value) points, constant before the first and after the last.

    Args:
        points: at least one [step, value], steps rising: [[0, 0], [6, 32], [12, 0]] rises for six
            steps and falls for six.
        integer: round to the nearest whole number.
        floor: round down instead, as the truncated linear schedules of MBPO do (Janner et al.,
            NeurIPS 2019). Each value is then reached only once the line is there: the largest of
            a rise at its very end, and never where the run ends before.
    """

    points: Sequence[Sequence[float]]
    integer: bool = False
    floor: bool = False

    def __post_init__(self) -> None:
        steps = [p[0] for p in self.points if len(p) == 2]
        rising = all(a < b for a, b in pairwise(steps))
        if not steps or len(steps) != len(self.points) or not rising:
            raise ValueError(
                f"Linear needs points [step, value] with rising steps; got {self.points!r}."
            )

    @property
    def largest(self) -> float:
        """The largest value of the points."""
        result: float = max(self(step) for step, _ in self.points)
        return result

    def __call__(self, step: float) -> Any:
        """Return the value at `step`."""
        value = self._at(step)
        if self.floor:
            return math.floor(value + 1e-9)  # 5.999... is a 6 that was computed
        return round(value) if self.integer else value

    def _at(self, step: float) -> float:
        if step <= self.points[0][0]:
            return self.points[0][1]
        for (a, u), (b, v) in pairwise(self.points):
            if step < b:
                return u + (v - u) * (step - a) / (b - a)
            if step == b:
                return v
        return self.points[-1][1]


def recorded(path: str | Path, column: str = "length", integer: bool = True) -> Linear:
    """Return a schedule that a run has written, such as the mean one of a learned policy.

    Replayed without looking, it says how much of a policy is feedback and how much is timing.
    The file has one row per decision of an episode, in order; for `Schedule(relative=true)`, which
    stretches them where an episode has another number of decisions.

    Args:
        path: a `.csv` file with a header.
        column: the name of the values in it.
        integer: round to the nearest whole number.

    Raises:
        ValueError: the file is missing or has no such finite numbers.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            values = [float(row[column]) for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"recorded needs a .csv file with a column of numbers {column!r}; reading "
            f"path={str(path)!r} failed: {type(error).__name__}: {error}."
        ) from error
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"recorded needs finite numbers; {str(path)!r} holds {values!r}.")
    last = max(1, len(values) - 1)
    return Linear([(i / last, v) for i, v in enumerate(values)], integer)


@final
class Schedule:
    """Set the outer variable by the step.

    The step is counted from the last `Feedback.done`: in an episodic problem the schedule starts
    again with each episode, elsewhere the step is the outer step. Where the problem observes a
    mapping with `step`, `steps` and `done`, as an acting optimizer needs it (see `Observation`),
    the step is the index of the decision within the episode that the observation says, and 0
    before the first one.

    Args:
        function: the value at a step (`Constant`, `Linear`, `recorded`, or any
            callable). In an outer variable with names a mapping sets some of them, and a number
            fills every tensor.
        relative: hand the function step / (steps - 1), which runs from 0 at the first to 1 at the
            last decision of an episode; needs a problem with such observations.
        cap: largest value that the problem takes, for a check before the first step of functions
            that say how far they go (those above); `None` for no check.

    Example:
        >>> schedule = Schedule(Linear([[0, 0], [2, 8]], integer=True))
        >>> schedule.init(0)
        >>> for key in range(3):
        ...     print(schedule.ask(key), end=" ")
        ...     schedule.tell(Feedback(0.0))
        0 4 8
    """

    def __init__(
        self, function: Callable[..., Any], relative: bool = False, cap: float | None = None
    ) -> None:
        self.function, self.relative, self.cap = function, relative, cap
        self._initial: Any = None
        self._step = self._asked = 0
        self._steps = 1

    def init(self, outer: Any) -> None:
        """Keep the first outer variable, whose shapes, dtypes and names the values take.

        Raises:
            ValueError: the function exceeds `cap`, or its first value does not fit.
        """
        largest = getattr(self.function, "largest", None)
        if largest is not None:
            check_cap("Schedule", "values", largest, self.cap)
        self._initial = tree.clone(outer)
        self._step = self._asked = 0
        self._steps = 1
        self._at(0)  # raises where the values do not fit, before the run

    def ask(self, key: int) -> Any:
        """Return the value at this step.

        Raises:
            ValueError: the outer variable is of whole numbers and the value is none.
        """
        self._asked = self._step
        return self._at(self._step)

    def tell(self, feedback: Feedback) -> None:
        """Take the step from the observation, or count it and start again when `done`.

        Raises:
            TypeError: `relative`, and the observation does not say how long an episode is.
        """
        observed = feedback.observation
        if isinstance(observed, Mapping) and {"step", "steps", "done"} <= observed.keys():
            self._steps = int(observed["steps"])
            self._step = 0 if observed["done"] else int(observed["step"])
        elif self.relative:
            raise TypeError(
                "Schedule with relative=true needs a problem that observes `step`, `steps` and "
                "`done`, such as rollout_length; this one does not. Use relative=false."
            )
        else:
            self._step = 0 if feedback.done else self._step + 1

    @property
    def solution(self) -> Any:
        """The value last asked for."""
        return self._at(self._asked)

    def state_dict(self) -> dict[str, Any]:
        """Return the next step, the one last asked for, and how many there are in an episode."""
        return {"step": self._step, "asked": self._asked, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._step, self._asked, self._steps = state["step"], state["asked"], state["steps"]

    def _at(self, step: int) -> Any:
        value = self.function(step / max(1, self._steps - 1) if self.relative else step)
        if value is None:
            return self._initial
        whole = isinstance(self._initial, Tensor) and not self._initial.is_floating_point()
        if whole and isinstance(value, float) and not value.is_integer():
            raise ValueError(
                f"Schedule gives {value} at step {step} for an outer variable of whole numbers. "
                "Use integer=true in its function."
            )
        return substitute(self._initial, value)


def check_cap(owner: str, argument: str, largest: float, cap: float | None) -> None:
    """Raise a `ValueError` where the largest value of an argument exceeds the problem's cap."""
    if cap is not None and largest > cap:
        raise ValueError(
            f"{owner} needs {argument} of at most cap={cap}, the largest that the problem takes; "
            f"got {largest}. Set a smaller one here, or a larger cap (problem.planner.cap)."
        )
