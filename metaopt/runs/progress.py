"""What a person sees of a run while it lasts."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from metaopt.files.terminal import in_notebook
from metaopt.runs.bar import Bar, main_metrics, written
from metaopt.runs.tracking import Tracker


class Console(Tracker):
    """A plain line of text now and then, for logs and pipes: `step 10/100  outer/loss 0.5`.

    Lines are at least `INTERVAL_S` seconds apart; those with an `eval/` metric always appear.
    """

    INTERVAL_S = 5.0

    def __init__(self, total: int) -> None:
        self.total = total
        self._printed = -math.inf

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a line, unless the last one is too recent."""
        now = time.monotonic()
        evaluated = any(name.startswith("eval/") for name in metrics)
        if not evaluated and now - self._printed < self.INTERVAL_S:
            return
        self._printed = now
        shown = {k: v for k, v in metrics.items() if not k.startswith(("time/", "budget/"))}
        parts = [f"{name} {value:.4g}" for name, value in shown.items()]
        print("  ".join([f"step {step}/{self.total}", *parts]), flush=True)


QUIET_S = 2.0
"""Seconds that a run may take before its first step without a word."""


@contextmanager
def announced(words: str, shown: bool = True) -> Iterator[None]:
    """Print what a block does on the standard error, where it lasts longer than `QUIET_S`."""
    # By a thread: a block that is over sooner, as in most runs, says nothing.
    timer = threading.Timer(QUIET_S, lambda: print(words, file=sys.stderr, flush=True))
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def checks(problem: Any, estimator: Any, prefix: str = "") -> str:
    """Return what is checked before the first step, and on batches of which size.

    Args:
        problem: or a list, with one of each seed.
        estimator: that is checked.
        prefix: of the problem's arguments, as a user types them.
    """
    first = problem[0] if isinstance(problem, (list, tuple)) else problem
    known = getattr(first, "__dict__", {})
    sizes = {k: v for k, v in known.items() if "batch" in k and type(v) is int}
    at = " ".join(f"{prefix}{k}={v}" for k, v in sizes.items())
    return (
        f"Before the first step: checking {type(estimator).__name__} on the losses of "
        f"{type(first).__name__}, some ten passes over batches as large as the run's"
        + (f" ({at}); smaller ones are checked sooner." if at else ".")
    )


class NotebookLine(Tracker):
    """One line in the output of a notebook's cell, rewritten in place; takes what `Bar` takes."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        from IPython.display import display

        self._label, self._total, self._started = label, total, time.monotonic()
        self._first, self._shown = done, dict[str, float]()
        self._handle = display(self._text(done), raw=True, display_id=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Rewrite the line; metrics of `outer/` and `eval/` stay until they change."""
        self._shown |= main_metrics(metrics)
        self._handle.update(self._text(step), raw=True)

    def _text(self, step: int) -> dict[str, str]:
        width = 24 * step // max(self._total, 1)
        steps, seconds = step - self._first, time.monotonic() - self._started
        left = f"{seconds / steps * (self._total - step):.0f} s left" if steps else ""
        bar = f"[{'#' * width}{'.' * (24 - width)}]"
        parts = [self._label, bar, f"{step}/{self._total}", left, *written(self._shown)]
        return {"text/plain": "  ".join(filter(None, parts))}


def watcher(label: str, total: int, done: int = 0) -> Tracker:
    """Return a `Bar` on a terminal, a line that is rewritten in a notebook, else plain lines."""
    # The bar of rich needs ipywidgets in a notebook, and is silent without.
    if in_notebook():
        return NotebookLine(label, total, done)
    return Bar(label, total, done) if sys.stderr.isatty() else Console(total)
