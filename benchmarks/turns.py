"""Loops that are timed in turns, so that what else runs on the machine meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Steps = Iterator[object]
"""A loop that takes one outer step each time it is asked for the next item."""

WARM_UP = 3
"""Turns in front that are not timed."""


class Ratio(NamedTuple):
    """A ratio of two times, by turn.

    Args:
        middle: its median.
        low, high: its quartiles.
        error: the standard error of the median, by the spread of the middle half, which outliers
            leave alone, as of a normal distribution.
    """

    middle: float
    low: float
    high: float
    error: float


def seconds(loops: Mapping[str, Steps], turns: int, steps: int) -> dict[str, list[float]]:
    """Return the CPU seconds of an outer step of each loop, one number a turn.

    CPU time, with one thread, leaves out what other programs on the machine take.

    Args:
        loops: by name.
        turns: how many are timed.
        steps: of an outer loop in a turn. One more comes first and is not timed: it runs with the
            CPU's caches full of another loop's code, as no step of a run does.
    """
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(turns + WARM_UP):
        for name, loop in loops.items():
            next(loop)
            started = time.thread_time()
            for _ in range(steps):
                next(loop)
            if turn >= WARM_UP:
                times[name].append((time.thread_time() - started) / steps)
    return times


def ratio(times: list[float], of: list[float]) -> Ratio:
    """Return the ratio of two loops' times: within a turn the machine is as fast for both."""
    shares = [a / b for a, b in zip(times, of, strict=True)]
    low, middle, high = statistics.quantiles(shares, n=4)
    return Ratio(middle, low, high, 1.253 * (high - low) / 1.349 / len(shares) ** 0.5)
