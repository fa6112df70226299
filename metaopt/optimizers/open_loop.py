"""Random and grid search: proposals depend on the step and the key, not on the feedback."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback
from metaopt.engine.random import generator
from metaopt.optimizers.spaces import Normal, Space, draw, substitute


class OpenLoop(ABC):
    """Proposes without looking back and keeps the best of what was tried.

    Values are comparable only where every inner run starts alike: use it with problems that do
    not warm-start (`warm_start=false`), or read the values as those of one long run.
    """

    keeps_best = True  # so that a candidate that diverged ends no search
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
        """Keep the first outer variable: proposals take its shapes, dtypes and names.

        Raises:
            TypeError: a proposal of this kind cannot be made; say before the run, not in it.
            ValueError: it names something that the outer variable does not hold.
        """
        self._initial = self._best = tree.clone(outer)
        self._outer, self._value, self._step, self._again = None, math.inf, 0, False
        self._propose(self._initial, 0, 0)  # a function of its arguments: only to see it fail

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


@final
class Random(OpenLoop):
    """Draw every outer variable independently from a space and keep the best.

    Args:
        space: a distribution, a list of choices, or either by name for an outer variable with
            names; `None` draws tensors and numbers from Normal(initial value, 1).

    References: Bergstra and Bengio, JMLR 2012.

    Example:
        >>> from metaopt.optimizers import Uniform
        >>> random = Random(Uniform(-1.0, 1.0))
        >>> random.init(3.0)
        >>> for key in range(50):
        ...     random.tell(Feedback(random.ask(key) ** 2))
        >>> abs(random.solution) < 0.1
        True
    """

    def __init__(self, space: Space | None = None) -> None:
        self.space = Normal() if space is None else space

    def _propose(self, initial: Any, step: int, key: int) -> Any:
        return draw(self.space, initial, generator(key))


@final
class Grid(OpenLoop):
    """Enumerate a grid, the last axis fastest; beyond its end, ask for the best point again.

    What is told beyond the end changes nothing, so a run with more outer steps than points ends on
    an inner run of the best one.

    Args:
        axes: the values to try: a list for the whole outer variable (a number fills every
            tensor), or lists by name, of which all combinations are tried; `None` tries -2, -1,
            0, 1 and 2.
        relative: add the values to the initial ones instead of replacing them.

    Raises:
        ValueError: an axis is empty.

    Example:
        >>> grid = Grid({"lr": [0.1, 0.2], "steps": [1, 2]}, relative=False)
        >>> grid.init({"lr": 0.0, "steps": 0})
        >>> for key in range(grid.size):
        ...     point = grid.ask(key)
        ...     grid.tell(Feedback(abs(point["lr"] * point["steps"] - 0.2) + point["lr"]))
        >>> grid.solution
        {'lr': 0.1, 'steps': 2}
    """

    def __init__(
        self,
        axes: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
        relative: bool = True,
    ) -> None:
        axes = (-2, -1, 0, 1, 2) if axes is None else axes
        lists = list(axes.values()) if isinstance(axes, Mapping) else [axes]
        if not lists or any(isinstance(a, str) or not len(a) for a in lists):
            raise ValueError(f"Grid needs axes with at least one value each; got {axes!r}.")
        self.axes, self.relative = axes, relative
        self.size = math.prod(len(a) for a in lists)

    def _propose(self, initial: Any, step: int, key: int) -> Any:
        return self.outer_at(initial, step) if step < self.size else None

    def outer_at(self, initial: Any, index: int) -> Any:
        """Return the outer variable at a point, 0 <= index < size."""
        value = substitute(initial, self.point(index))
        return _added(initial, value, self.point(index)) if self.relative else value

    def point(self, index: int) -> Any:
        """Return the point at `index`, 0 <= index < size."""
        if not isinstance(self.axes, Mapping):
            return self.axes[index]
        point = {}
        for name, values in reversed(list(self.axes.items())):
            index, i = divmod(index, len(values))
            point[name] = values[i]
        return dict(reversed(list(point.items())))


def _added(initial: Any, value: Any, point: Any) -> Any:
    """Return initial + value, for the names that the point sets."""
    if isinstance(initial, dict):
        names = point if isinstance(point, Mapping) else initial
        return {k: initial[k] + value[k] if k in names else initial[k] for k in initial}
    if isinstance(initial, (int, float, torch.Tensor)):
        return initial + value
    raise TypeError(f"Grid with relative=true needs numbers or tensors; got {initial!r}.")
