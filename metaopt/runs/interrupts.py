"""What stops a run between two outer steps: a signal, or the search that it is a trial of."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from metaopt.runs.stopping import Stop, write_stop

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that stop a run after the outer step under way."""


class Interrupted(Exception):
    """The run stopped between two outer steps because a signal asked for it.

    Args:
        signum: the signal.
        step: the outer step whose checkpoint was written.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"{signal.Signals(signum).name} after outer step {step}")
        self.stop = Stop("signal", str(self))
        self.signum, self.step = signum, step


class Pruned(Exception):
    """The run stopped between two outer steps, since its objective is worse than other trials'.

    Args:
        step: the outer step whose checkpoint was written.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"pruned after outer step {step}")
        self.stop = Stop("search", str(self))
        self.step = step


@contextmanager
def noting(folder: Path) -> Iterator[None]:
    """Leave in a run's folder what stopped it, which tells it from one that was killed."""
    try:
        yield
    except (Interrupted, Pruned) as error:
        with suppress(OSError):  # such as of a full disk, which is no reason to hide the signal
            write_stop(folder, error.stop)
        raise


@contextmanager
def listening() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; the second one kills.

    Outside the main thread, where Python sets no handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    before = {s: signal.signal(s, handle) for s in SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
