"""What a person sees of a run while it lasts."""

from __future__ import annotations

import sys

from rich.console import Console as Screen
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from metaopt.runs.tracking import Console, Scalars, Tracker, floats


class Bar(Tracker):
    """A progress bar with rate, remaining time and the main metrics; for a terminal.

    Args:
        label: printed before the bar.
        total: number of outer steps.
        done: outer steps that an earlier part of the run has taken.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._shown: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            _Rate(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
            console=Screen(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task(label, total=total, completed=done, shown="")
        self._progress.start()

    def log(self, step: int, metrics: Scalars) -> None:
        """Move the bar to `step`; metrics of `outer/` and `eval/` stay until they change."""
        numbers = floats(metrics)
        self._shown |= {k: v for k, v in numbers.items() if k == "outer/loss" or "eval/" in k}
        shown = "  ".join(f"{k} {v:.4g}" for k, v in list(self._shown.items())[:3])
        self._progress.update(self._task, completed=step, shown=shown)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._progress.stop()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return steps a second, or seconds a step when that is the larger number."""
        speed = task.speed or 0.0
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed else "")


class Silent(Tracker):
    """Shows nothing while the run lasts; takes what `watcher` takes."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label = label

    def log(self, step: int, metrics: Scalars) -> None:
        """Ignore the metrics."""

    def close(self) -> None:
        """Do nothing: nothing was opened."""


def watcher(label: str, total: int, done: int = 0) -> Tracker:
    """Return a `Bar` on a terminal, and plain lines elsewhere."""
    return Bar(label, total, done) if sys.stderr.isatty() else Console(total)
