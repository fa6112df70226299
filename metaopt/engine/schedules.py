"""Factors on a learning rate, as functions of the number of steps taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from metaopt.engine.ranges import check_ranges


class Schedule(Protocol):
    """A factor on the learning rate, as a function of the number of steps already taken."""

    def __call__(self, step: int) -> float:
        """Return the factor for the step after `step` steps."""
        ...


@dataclass(frozen=True)
class Cosine:
    """0 for `wait` steps, linear up to 1 over `warmup` more, then half a cosine to `floor`.

    factor(t) = floor + (1 - floor) (1 + cos(pi (t - w) / (total - w))) / 2,  w = wait + warmup,
    and `floor` from t = total on (Loshchilov and Hutter, SGDR, ICLR 2017).
    """

    total: int
    warmup: int = 0
    floor: float = 0.0
    wait: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, "warmup >= 0", "wait >= 0", "0 <= floor <= 1")
        if self.wait + self.warmup >= self.total:
            raise ValueError(
                f"Cosine needs wait + warmup < total; got wait={self.wait}, warmup={self.warmup}, "
                f"total={self.total}."
            )

    def __call__(self, step: int) -> float:
        """Return the factor for the step after `step` steps."""
        step, total = step - self.wait, self.total - self.wait
        if step < 0:
            return 0.0
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / (total - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class StepDecay:
    """Multiply by `factor` at each milestone: factor ** (number of milestones <= t)."""

    milestones: Sequence[int]
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, "factor > 0")

    def __call__(self, step: int) -> float:
        """Return the factor for the step after `step` steps."""
        return self.factor ** sum(step >= m for m in self.milestones)


@dataclass(frozen=True)
class PowerDecay:
    """A power law: factor(t) = (1 + floor(t / every))^-exponent after t steps.

    The step sizes of stochastic bilevel methods: 1/2 for SOBA, 4/7 for F2SA, 0 for SABA. A rate of
    the inner level counts inner steps, so that `every=K` counts the outer steps of K of them.

    Example:
        >>> decay = PowerDecay(0.5)
        >>> decay(0), decay(3), PowerDecay(0.5, every=10)(39)
        (1.0, 0.5, 0.5)
    """

    exponent: float
    every: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, "exponent >= 0", "every >= 1")

    def __call__(self, step: int) -> float:
        """Return the factor for the step after `step` steps."""
        return float((1 + step // self.every) ** -self.exponent)
