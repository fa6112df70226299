"""What an acting outer optimizer may do to a rollout length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from metaopt.engine.ranges import check_ranges
from metaopt.optimizers.schedule import check_cap


class Actions(Protocol):
    """A finite set of actions on lengths."""

    @property
    def count(self) -> int:
        """The number of actions, numbered from 0."""
        ...

    def __call__(self, action: Tensor, length: Tensor) -> Tensor:
        """Return the lengths after the actions.

        Args:
            action: numbers of actions, long [R].
            length: the lengths so far, long [R].
        """
        ...


@dataclass(frozen=True)
class Ladder:
    """Up, down or stay, as numbers 0, 1 and 2 of the action.

    UP: K <- min(ceil(up * K), cap), and 0 -> 1;  DOWN: K <- floor(down * K);  NOOP: K <- K.
    With the defaults UP climbs 0, 1, 2, 3, 5, 8, 12, 18, 27, 32, and DOWN is the stronger of the
    two, so that a random walk hovers near 0.

    Args:
        cap: largest length, >= 1.
        up: factor of UP, > 1.
        down: factor of DOWN, in [0, 1).

    References: Bhatia, Thomas and Zilberstein, "Adaptive Rollout Length for Model-Based RL Using
        Model-Free Deep RL", arXiv 2206.02380, 2022.
    """

    count: ClassVar[int] = 3

    cap: int = 32
    up: float = 1.5
    down: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, "cap >= 1", "up > 1", "0 <= down < 1")

    def __call__(self, action: Tensor, length: Tensor) -> Tensor:
        """Return the lengths after the actions; see `Actions`."""
        exact = length.double()  # whole numbers below 2**53 stay whole
        up = torch.ceil(exact * self.up - 1e-9)  # 11.000000000000002 is an 11
        up = torch.maximum(up, exact + 1).clamp(max=self.cap)
        down = torch.floor(exact * self.down + 1e-9)
        moved = torch.where(action == 0, up, torch.where(action == 1, down, exact))
        return moved.to(length)


@dataclass(frozen=True)
class Absolute:
    """Action i sets the length to the i-th of `values`, whatever it was.

    Args:
        values: at least one length, each a whole number >= 0, none twice.
        cap: largest length that the problem takes; `None` for no check.
    """

    values: Sequence[int]
    cap: int | None = None

    def __post_init__(self) -> None:
        values = [] if isinstance(self.values, str) else list(self.values)
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
        if not values or not whole or len(set(values)) != len(values):
            raise ValueError(
                f"Absolute needs a list of different whole numbers >= 0; got {self.values!r}."
            )
        check_cap("Absolute", "values", max(values), self.cap)

    @property
    def count(self) -> int:
        """The number of values."""
        return len(self.values)

    def __call__(self, action: Tensor, length: Tensor) -> Tensor:
        """Return the lengths after the actions; see `Actions`."""
        return torch.tensor(list(self.values)).to(length)[action]
