"""How far a long inner run has come: written by the run, read by whoever shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Phase:
    """A part of an inner run.

    Args:
        name: of what is counted, such as "inner step".
        total: how many there are.
        done: how many are over; whoever counts adds to it.
    """

    name: str
    total: int
    done: int = 0

    def __str__(self) -> str:
        """Return what a line shows, such as `inner step 1,340/10,000`."""
        return f"{self.name} {self.done:,}/{self.total:,}"


class Progress:
    """The phase that an inner run is in, for a reader in any thread.

    Plain numbers in place of calls of a reader: a step costs an addition, and waits for nothing.

    Example:
        >>> progress = Progress()
        >>> for k in progress.track(range(3), "inner step"):
        ...     print(progress.current.done, "of", progress.current.total)
        0 of 3
        1 of 3
        2 of 3

    Attributes:
        current: the phase, or `None` between two; of phases inside each other the outermost.
    """

    def __init__(self) -> None:
        self.current: Phase | None = None

    @contextmanager
    def phase(self, name: str, total: int, done: int = 0) -> Iterator[Phase]:
        """Return a block in which its phase is the current one, unless it is inside another's."""
        phase, outer = Phase(name, total, done), self.current
        self.current = outer or phase
        try:
            yield phase
        finally:
            self.current = outer

    def track(
        self, steps: Sequence[T], name: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the steps of a phase, or of a part of one that comes after `done`; count them."""
        with self.phase(name, len(steps) if total is None else total, done) as phase:
            for step in steps:
                yield step
                phase.done += 1
