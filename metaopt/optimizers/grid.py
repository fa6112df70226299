"""Grid search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from metaopt.optimizers.open_loop import OpenLoop
from metaopt.optimizers.spaces import substitute


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
        if step >= self.size:
            return None
        value = substitute(initial, self.point(step))
        return _added(initial, value, self.point(step)) if self.relative else value

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
