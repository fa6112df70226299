"""The progress bar of a run on a terminal: one line, whatever its width."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich import progress as rich
from rich.cells import cell_len
from rich.console import Console as Screen
from rich.progress import MofNCompleteColumn, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metaopt.engine.inner_progress import Progress
from metaopt.runs.fitting import shortened
from metaopt.runs.tracking import Tracker

WIDEST = 24
"""Columns of the bar where there is room."""

NARROWEST = 8
"""Columns of the bar where there is none."""

SHORTEST = 10
"""Columns of the name of a metric that is shortened, at least."""


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
        self._line = _Line(console=Screen(stderr=True))
        self._task: TaskID = self._line.add_task(label, total=total, completed=done, shown={})
        self._line.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to `step`; metrics of `outer/` and `eval/` stay until they change."""
        self._shown |= main_metrics(metrics)
        self._line.inner.since = time.monotonic()
        self._line.update(self._task, completed=step, shown=dict(self._shown))

    def follow(self, progress: Progress) -> None:
        """Show the inner steps of an outer step that takes long."""
        self._line.inner.progress, self._line.inner.since = progress, time.monotonic()

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._line.stop()


class _Line(rich.Progress):
    """One line that is as wide as the terminal at most."""

    def __init__(self, console: Screen) -> None:
        self.inner = _Inner()
        self._counter, self._rate, self._left = MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
        super().__init__(console=console)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return a table of one line with what fits."""
        table = Table.grid(padding=(0, 1))
        for task in tasks:
            counter, left = self._counter.render(task), self._left.render(task)
            rate, inner = self._rate.render(task), self.inner.render(task)
            fixed = cell_len(counter.plain) + cell_len(left.plain) + 5  # spaces
            room = self.console.width - fixed
            parts = fit(room, task.description, rate.plain, inner.plain, task.fields["shown"])
            bar = ProgressBar(total=task.total, completed=task.completed, width=parts.bar)
            after = Text("  ".join(parts.after), no_wrap=True, overflow="crop")
            table.add_row(Text(parts.label, no_wrap=True), bar, counter, left, after)
        return table


class Parts(NamedTuple):
    """What of a line fits beside the counter and the remaining time.

    Args:
        label: of the run, perhaps shortened.
        bar: columns of the bar.
        after: what follows: inner steps, metrics and rate.
    """

    label: str
    bar: int
    after: list[str]


def fit(room: int, label: str, rate: str, inner: str, metrics: Mapping[str, float]) -> Parts:
    """Return what fits: the bar first, then the label, the inner steps, metrics, and the rate.

    The value of a metric is shown whole or not at all; its name may be shortened.

    Args:
        room: columns in all.
        label, rate, inner: may be empty.
        metrics: the most important one first.
    """
    bar = max(min(NARROWEST, room), 1)
    room -= bar
    width = min(cell_len(label), max(room // 4, min(12, room)))
    room -= width
    after: list[str] = []
    texts = written(metrics)
    for part in filter(None, [inner, *texts, rate]):
        name, _, value = part.rpartition(" ")
        space = room - 3 - cell_len(value)
        if part in texts and space >= SHORTEST:
            part = f"{shortened(name, space)} {value}"
        if (needed := cell_len(part) + 2) <= room:
            after.append(part)
            room -= needed
    more = min(max(room, 0), cell_len(label) - width)
    bar += min(max(room - more, 0), WIDEST - bar)
    return Parts(shortened(label, width + more), bar, after)


def main_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a line shows."""
    return {k: v for k, v in metrics.items() if k == "outer/loss" or "eval/" in k}


def written(metrics: Mapping[str, float]) -> list[str]:
    """Return the first three metrics as texts."""
    return [f"{name} {value:.4g}" for name, value in list(metrics.items())[:3]]


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
        return Text(str(phase))
