"""Which states of an inner run are kept for its reverse pass, and what is run again.

A schedule is a pure function of the kept states and of the step that is differentiated next, so
that a reverse pass which was interrupted goes on from what it finds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Protocol


class Schedule(Protocol):
    """Which states are kept, by the number of steps taken before them."""

    def first(self, target: int) -> int:
        """Return the first of the steps that are differentiated at once, `target` the last."""
        ...

    def next(self, stored: Sequence[int], target: int) -> int | None:
        """Return the next state to keep on the way from the last kept one to `first(target)`.

        `None`: no further one.
        """
        ...


@dataclass(frozen=True)
class Segments:
    """The starts of `count` segments of equal length; the graph of one segment is built at once.

    Memory for `count` states and the graph of ceil(K / count) steps; each step is taken once before
    it is taken on a graph. One segment is the whole graph.

    Args:
        steps: the steps that are differentiated.
        count: number of segments, from 1 to the number of steps.

    Reference: Chen et al., arXiv 1604.06174, 2016.
    """

    steps: range
    count: int

    @property
    def starts(self) -> list[int]:
        """The first steps of the segments, whose lengths differ by at most one."""
        first, length = self.steps.start, len(self.steps)
        return [first + length * i // self.count for i in range(self.count)]

    def first(self, target: int) -> int:
        """Return the first step of the segment that `target` is in."""
        return _last_up_to(target, self.starts)

    def next(self, stored: Sequence[int], target: int) -> int | None:
        """Return the next start of a segment."""
        following = _first_after(stored[-1], self.starts)
        return following if following is not None and following < self.first(target) else None


@dataclass(frozen=True)
class Revolve:
    """Binomial checkpoints: the fewest forward steps with at most `snapshots` states kept.

    l steps are differentiated with r l - C(s + r, r - 1) forward steps, s = snapshots and r the
    smallest number with C(s + r, s) >= l, beside the one that each step's own derivative takes.

    Args:
        snapshots: number s of states, the first one counted, >= 1.

    Reference: Griewank and Walther, Algorithm 799: Revolve, ACM TOMS 26, 2000.
    """

    snapshots: int

    def first(self, target: int) -> int:
        """Return `target`: one step is differentiated at once."""
        return target

    def next(self, stored: Sequence[int], target: int) -> int | None:
        """Return where the optimal split of the steps left puts the next state."""
        steps, free = target - stored[-1] + 1, self.snapshots - len(stored)
        if steps == 1 or free <= 0:
            return None
        s = free + 1  # the last kept state is one of those that this part of the run has
        r = _repetitions(steps, s)
        split = max(1, comb(s + r - 2, s), steps - comb(s - 1 + r, s - 1))
        return stored[-1] + split if split < steps - 1 else None


def forward_steps(schedule: Schedule, steps: range) -> int:
    """Return how many steps a reverse pass takes beside those that it differentiates.

    The step to the end of the run, which the meta-objective needs first, is one of them.
    """
    stored, target, count = [steps.start], steps[-1], 0
    if schedule.first(target) == steps.start:
        return 0  # one graph, with the end of the run on it
    count = steps.stop - schedule.first(target)
    while target >= steps.start:
        first, at = schedule.first(target), stored[-1]
        count += first - at
        while (following := schedule.next(stored, target)) is not None:
            stored.append(following)
        if stored[-1] == first:
            stored.pop()
        target = first - 1
    return count


@cache
def _repetitions(steps: int, states: int) -> int:
    """Return the smallest r with C(states + r, states) >= steps."""
    r = 1
    while comb(states + r, states) < steps:
        r += 1
    return r


def _last_up_to(step: int, starts: Sequence[int]) -> int:
    return starts[bisect_right(starts, step) - 1]


def _first_after(step: int, starts: Sequence[int]) -> int | None:
    i = bisect_right(starts, step)
    return starts[i] if i < len(starts) else None
