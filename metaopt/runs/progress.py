"""What a person sees of a run while it lasts."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import progress as rich
from rich.console import Console as Screen
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.inner_progress import Progress
from metaopt.files.terminal import in_notebook
from metaopt.runs.tracking import Tracker


class Bar(Tracker):
    """A progress bar with rate, remaining time and the main metrics; for a terminal.

    A thread of its own draws it and reads where the inner run is, so that a long outer step shows
    its inner ones and does not wait for the screen.

    Args:
        label: printed before the bar.
        total: number of outer steps.
        done: outer steps that an earlier part of the run has taken.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._shown: dict[str, float] = {}
        self._inner = _Inner()
        self._progress = rich.Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            _Rate(), TimeRemainingColumn(), self._inner, TextColumn("{task.fields[shown]}"),
            console=Screen(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task(label, total=total, completed=done, shown="")
        self._progress.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to `step`; metrics of `outer/` and `eval/` stay until they change."""
        self._shown |= _main(metrics)
        self._inner.since = time.monotonic()
        self._progress.update(self._task, completed=step, shown=_written(self._shown))

    def follow(self, progress: Progress) -> None:
        """Show the inner steps of an outer step that takes long."""
        self._inner.progress, self._inner.since = progress, time.monotonic()

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._progress.stop()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return steps a second, or seconds a step when that is the larger number."""
        speed = task.speed or 0.0
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed else "")


class _Inner(ProgressColumn):
    """The phase that an inner run is in, where an outer step lasts more than a second.

    Attributes:
        progress: of the inner run.
        since: when the last outer step was over, by `time.monotonic`.
    """

    progress: Progress | None = None
    since = -math.inf

    def render(self, task: Task) -> Text:
        """Return what is counted, such as `inner step 1,340/10,000`."""
        phase = None if self.progress is None else self.progress.current
        if phase is None or time.monotonic() - self.since < 1.0:
            return Text("")
        return Text(f"{phase.name} {phase.done:,}/{phase.total:,}")


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


class GrowthWarning(Tracker):
    """Says once, on the standard error, that the adjoint of an unrolled run grows.

    `metrics["inner/adjoint_growth"]` is |dF/dtheta_0| / |dF/dtheta_K|. Stable training contracts it
    (0.3 to 1 on this repository's small networks); runs whose hypergradient bfloat16 got wrong, or
    retraining did not follow, had 6 to 160. The threshold is a proposal.
    """

    MOST = 10.0

    def __init__(self) -> None:
        self._said = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn at the first step at which the growth is above `MOST`."""
        growth = metrics.get("inner/adjoint_growth", 0.0)
        if self._said or not growth > self.MOST:  # NaN where F has no slope in theta
            return
        self._said = True
        print(
            f"Warning: at outer step {step} the adjoint grew {growth:.3g}-fold on its way back "
            f"through the inner steps (inner/adjoint_growth), and rounding errors with it: the "
            f"hypergradient may be imprecise, or say little of where retraining ends. "
            f"metaopt-check with the keys of this run measures both and names cures.",
            file=sys.stderr,
        )


SILENT_S = 2.0
"""Seconds that a run may take before its first step without a word."""


@contextmanager
def announced(words: str, shown: bool = True) -> Iterator[None]:
    """Print what a block does on the standard error, where it lasts longer than `SILENT_S`."""
    # By a thread: a block that is over sooner, as in most runs, says nothing.
    timer = threading.Timer(SILENT_S, lambda: print(words, file=sys.stderr, flush=True))
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


def warn_of_equal_replicates(outer: Any, metrics: Mapping[str, Any]) -> None:
    """Say on the standard error that several seeds have the same results, to the bit.

    Args:
        outer: outer variables after the first step, with an axis of replicates in front.
        metrics: of that step; those of replicates have the shape (R,).
    """
    values = [v for v in metrics.values() if isinstance(v, Tensor) and v.ndim]
    if not all(bool((t == t[:1]).all()) for t in [*tree.tensors(outer), *values]):
        return
    print(
        "Warning: all seeds have the same results: nothing in the first outer step depended on the "
        "seed, and an interval over these seeds would say nothing. Where the problem draws its "
        "data itself, put `seed: ${seed}` into the YAML of the problem, or pass a list with the "
        "problem of each seed in Python.",
        file=sys.stderr,
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
        self._shown |= _main(metrics)
        self._handle.update(self._text(step), raw=True)

    def _text(self, step: int) -> dict[str, str]:
        width = 24 * step // max(self._total, 1)
        steps, seconds = step - self._first, time.monotonic() - self._started
        left = f"{seconds / steps * (self._total - step):.0f} s left" if steps else ""
        bar = f"[{'#' * width}{'.' * (24 - width)}]"
        parts = [self._label, bar, f"{step}/{self._total}", left, _written(self._shown)]
        return {"text/plain": "  ".join(filter(None, parts))}


def _main(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k == "outer/loss" or "eval/" in k}


def _written(shown: Mapping[str, float]) -> str:
    return "  ".join(f"{k} {v:.4g}" for k, v in list(shown.items())[:3])


def watcher(label: str, total: int, done: int = 0) -> Tracker:
    """Return a `Bar` on a terminal, a line that is rewritten in a notebook, else plain lines."""
    # The bar of rich needs ipywidgets in a notebook, and is silent without.
    if in_notebook():
        return NotebookLine(label, total, done)
    return Bar(label, total, done) if sys.stderr.isatty() else Console(total)
