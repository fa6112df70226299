"""Policies that do not learn: a random walk, feedback on the model's error; actions on a length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol, final

import torch
from torch import Generator, Tensor

from metaopt.engine.random import generator
from metaopt.engine.ranges import check_ranges
from metaopt.optimizers.schedule import check_cap
from metaopt.problems.rollout_length.policies.policy import Observation, Policy


@final
class Rule(Policy):
    """Set the lengths by a fixed rule on what is observed.

    Args:
        function: the next lengths from an observation and a generator (`RandomWalk`,
            `ErrorFeedback`, or any callable).
    """

    def __init__(self, function: Callable[[Observation, Generator], Tensor]) -> None:
        self.function = function

    def _decide(self, observed: Observation, key: int) -> Tensor:
        return self.function(observed, generator(key))


@dataclass(frozen=True)
class RandomWalk:
    """Each run takes an action drawn uniformly: what a learned choice must beat.

    Args:
        actions: what may be drawn: `Ladder` or `Absolute`.
    """

    actions: Actions

    def __call__(self, observed: Observation, generator: Generator) -> Tensor:
        """Return the next lengths, long [R]."""
        count = self.actions.count
        action = torch.randint(count, observed.length.shape, generator=generator)
        return self.actions(action, observed.length)


@dataclass(frozen=True)
class ErrorFeedback:
    """The smaller the model's error, the longer the rollouts; none once the policy is good.

    K = lengths[i] for the first i with |feature| < bounds[i], else the last of `lengths`;
    K = 0 where the score exceeds `enough`.

    Args:
        lengths: one more than there are bounds, each a whole number >= 0.
        bounds: rising, > 0, in units of the feature.
        feature: index of the feature that measures the model's error: 3 is the error of its
            returns, 4 that of its episodes' lengths.
        enough: score above which a run stops planning, or `None` for never.
        cap: largest length that the problem takes; `None` for no check.
    """

    lengths: Sequence[int] = (16, 8, 2)
    bounds: Sequence[float] = (0.1, 0.3)
    feature: int = 4
    enough: float | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise((0, *self.bounds)))
        whole = all(isinstance(k, int) and k >= 0 for k in self.lengths)
        if not rising or not whole or len(self.lengths) != len(self.bounds) + 1:
            raise ValueError(
                "ErrorFeedback needs rising bounds > 0 and one more length, each a whole number "
                f">= 0; got lengths={self.lengths!r}, bounds={self.bounds!r}."
            )
        check_ranges(self, "feature >= 0")
        check_cap("ErrorFeedback", "lengths", max(self.lengths), self.cap)

    def __call__(self, observed: Observation, generator: Generator) -> Tensor:
        """Return the next lengths, long [R].

        Raises:
            ValueError: there are no more than `feature` features.
        """
        if self.feature >= observed.state.shape[1]:
            raise ValueError(
                f"ErrorFeedback reads feature {self.feature} of observations that have "
                f"{observed.state.shape[1]}, numbered from 0."
            )
        error = observed.state[:, self.feature].abs()
        # A bound counts as exceeded where it is reached, hence right=True.
        place = torch.bucketize(error, torch.tensor(list(self.bounds)), right=True)
        lengths = torch.tensor(list(self.lengths)).to(observed.length)[place]
        return (
            lengths if self.enough is None else lengths.masked_fill(observed.score > self.enough, 0)
        )


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
