"""Where outer variables are drawn from, and how a plain value becomes an outer variable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from metaopt.engine.ranges import check_ranges


class Distribution(Protocol):
    """Draws one value: a tensor of the shape of `like`, or a plain value where it is none."""

    def __call__(self, like: Any, generator: Generator) -> Any:
        """Return a draw."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high); on the logarithm with `log`; on {low, ..., high} with `integer`.

    Args:
        low, high: bounds, low < high (low > 0 with `log`).
        log: draw exp(u), u uniform on [log low, log high).
        integer: draw whole numbers, both bounds included; not together with `log`.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and (self.low <= 0 or self.integer)):
            raise ValueError(
                f"Uniform needs low < high, and with log=true also low > 0 and integer=false; "
                f"got {self}."
            )

    def __call__(self, like: Any, generator: Generator) -> Any:
        """Return a draw."""
        u = torch.rand(_shape(like), generator=generator, dtype=torch.float64)
        if self.log:
            ratio = math.log(self.high / self.low)
            return _as(like, self.low * torch.exp(u * ratio))
        if self.integer:
            whole = self.low + torch.floor(u * (self.high - self.low + 1))
            return _as(like, whole.long())
        return _as(like, self.low + u * (self.high - self.low))


@dataclass(frozen=True)
class Normal:
    """Normal around `mean`, or around the initial outer variable when that is `None`.

    Args:
        std: standard deviation, > 0.
        mean: centre.
    """

    std: float = 1.0
    mean: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "std > 0")

    def __call__(self, like: Any, generator: Generator) -> Any:
        """Return a draw.

        Raises:
            TypeError: `like` is neither a number nor a tensor of floating-point numbers.
        """
        numeric = isinstance(like, (int, float)) and not isinstance(like, bool)
        if not numeric and not (isinstance(like, Tensor) and like.is_floating_point()):
            raise TypeError(
                f"Normal draws floating-point numbers and the outer variable holds "
                f"{like!r}. Give a space for it: a list of choices, Uniform, or Choice."
            )
        noise = torch.randn(_shape(like), generator=generator, dtype=torch.float64)
        mean = like if self.mean is None else self.mean
        noise = noise.to(like.device) if isinstance(like, Tensor) else noise
        return _as(like, mean + self.std * noise)


@dataclass(frozen=True)
class Choice:
    """One of `values` with equal probability; for a tensor, entry by entry."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not self.values:
            raise ValueError(f"Choice needs a list of at least one value; got {self.values!r}.")

    def __call__(self, like: Any, generator: Generator) -> Any:
        """Return a draw."""
        index = torch.randint(len(self.values), _shape(like), generator=generator)
        if isinstance(like, Tensor):
            return _as(like, torch.tensor(list(self.values), dtype=torch.float64)[index])
        return self.values[int(index)]


Space = Distribution | Sequence[Any] | Mapping[str, Any]
"""One distribution for the whole outer variable, or one by name; a list is a `Choice`."""


def draw(space: Space, outer: Any, generator: Generator) -> Any:
    """Return an outer variable drawn from `space`; names without a distribution keep theirs.

    Raises:
        ValueError: `space` names something that the outer variable does not hold.
    """
    if isinstance(space, Mapping):
        require_names(outer, space, "space")
        return {**outer, **{k: draw(v, outer[k], generator) for k, v in space.items()}}
    distribution = space if callable(space) else Choice(space)
    if isinstance(outer, dict):
        return {k: distribution(v, generator) for k, v in outer.items()}
    return distribution(outer, generator)


def substitute(outer: Any, value: Any) -> Any:
    """Return `outer` with `value` in its place.

    Where the outer variable is a dict, a mapping replaces some names and one number fills all
    tensors; numbers and lists take the dtype, the device and, by broadcasting, the shape of the
    tensor they replace.

    Raises:
        TypeError: a text for what is none, or the other way round.
    """
    if isinstance(outer, Tensor):
        tensor = torch.as_tensor(value, dtype=outer.dtype, device=outer.device)
        return tensor.expand(outer.shape).clone()
    if not isinstance(outer, dict):
        if isinstance(outer, str) != isinstance(value, str):
            raise TypeError(f"{value!r} cannot take the place of the outer variable {outer!r}.")
        return value
    if not isinstance(value, Mapping):
        value = dict.fromkeys(outer, value)
    require_names(outer, value, "value")
    return {k: substitute(v, value[k]) if k in value else v for k, v in outer.items()}


def require_names(outer: Any, names: Mapping[str, Any], what: str) -> None:
    """Raise a `ValueError` unless the outer variable is a dict that holds all of `names`."""
    held = list(outer) if isinstance(outer, dict) else []
    unknown = [n for n in names if n not in held]
    if unknown:
        legal = f"its names are {held}" if held else f"it is {outer!r}, without names"
        raise ValueError(f"{what} names {unknown}, which the outer variable lacks: {legal}.")


def _shape(like: Any) -> tuple[int, ...]:
    return tuple(like.shape) if isinstance(like, Tensor) else ()


def _as(like: Any, value: Tensor) -> Any:
    return value.to(like) if isinstance(like, Tensor) else value.item()
