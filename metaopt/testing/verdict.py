"""Numbers against thresholds, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metaopt.engine.inner_optimizers import Adam, InnerOptimizer

FINE, POOR = 0.99, 0.9
"""Agreement from which nothing is said, and below which a hypergradient is refused.

Proposals: they separate the runs of this repository's tests and are not calibrated beyond them.
"""

Level = Literal["fine", "warning", "error"]


@dataclass(frozen=True)
class Verdict:
    """What a measurement means.

    Args:
        level: fine, warning or error.
        text: one sentence, and the cures in the order in which to try them.
    """

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def level_of(agreement: float) -> Level:
    """Return what a cosine, a correlation or a smoothness of at most 1 amounts to."""
    if math.isnan(agreement) or agreement < POOR:
        return "error"
    return "fine" if agreement >= FINE else "warning"


def calming(optimizer: InnerOptimizer) -> tuple[str, ...]:
    """Return what makes training less sensitive, in the order in which to try it."""
    return (
        *(["a larger eps of the inner Adam"] if isinstance(optimizer, Adam) else []),
        "a smaller inner learning rate",
        "fewer inner steps, or truncation= of estimator=unroll",
    )


def in_order(cures: Sequence[str]) -> str:
    """Return cures as one sentence."""
    if len(cures) == 1:
        return f"Take {cures[0]}."
    return f"In this order: {'; '.join(cures)}."
