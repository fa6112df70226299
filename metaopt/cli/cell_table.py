"""What a person sees of a multirun: a table that changes in place, a line for each cell ended."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console as Screen
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metaopt.cli.cells import SILENT_S, Cell, Multirun
from metaopt.runs.fitting import NARROWEST, Column, fitted, rounded, shortened
from metaopt.runs.headline import headline
from metaopt.runs.status import OVER, Status

MOST_METRICS = 3
LEAST_NAME = 16
"""Characters of a cell's name that its metrics leave room for."""

LOG_WIDTH = 200
"""Characters of a line in a file or a pipe, in which names are whole; COLUMNS is another number."""


def in_words(seconds: float) -> str:
    """Return a duration in two units at most.

    Example:
        >>> [in_words(x) for x in (0.32, 12.3, 125, 4000, 200_000)]
        ['0.3 s', '12 s', '2 min 5 s', '1 h 6 min', '2 d 7 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    rest = round(seconds)
    at = next(i for i, (_, length) in enumerate(units) if rest >= length)
    (large, length), (small, part) = units[at : at + 2]
    count = rest % length // part
    return f"{rest // length} {large}" + (f" {count} {small}" if count else "")


def heading(multirun: Multirun, width: int) -> str:
    """Return how many cells are done, running, failed and waiting, and the time left."""
    done = len(multirun.of("finished", "pruned"))
    parts = [f"{done} of {multirun.size} done"]
    counted: tuple[Status, ...] = ("running", "elsewhere", "failed", "killed")
    counts = {status: len(multirun.of(status)) for status in counted}
    parts += [f"{n} {status}" for status, n in counts.items() if n]
    waiting = multirun.size - done - sum(counts.values())
    parts += [f"{waiting} waiting"] if waiting else []
    left = multirun.left_s()
    if left is not None and (waiting or counts["running"]):
        parts.append(f"about {in_words(left if left < 120 else 60 * round(left / 60))} left")
    states, title = ", ".join(parts), str(multirun.folder)
    room = width - len(states) - 2
    if room < min(len(title), LEAST_NAME):
        return states
    return f"{shortened(title, room, both_ends=True)}: {states}"


def line(cell: Cell, place: str, name_width: int, width: int) -> str:
    """Return what came out of a cell, in one line.

    Args:
        cell: one that has ended.
        place: which it is of how many.
        name_width: characters for its name, where its values leave so many.
        width: of the line. Metrics are left out, the last ones first, so that it has room.
    """
    values: list[str] = [cell.status] if cell.status == "pruned" else []
    if cell.status == "failed":
        values = [f"failed: {' '.join(cell.message.split())}"]
    names = headline(cell.stated, cell.metrics)[:MOST_METRICS]
    values += [_value(name, cell.metrics[name]) for name in names]
    if cell.shared and not cell.computed:
        values.append("by another command")
    elif cell.seconds is not None:
        values.append(in_words(cell.seconds))
    name = rounded(cell.name)
    least = min(len(name), name_width, width // 2 if cell.message else LEAST_NAME)
    while len(values) > 2 and width - len("  ".join([place, *values])) - 2 < least:
        values.pop(-2)
    room = width - len("  ".join([place, *values])) - 2
    if room < least and values:  # one long text, of a mistake or a metric
        values[0] = shortened(values[0], max(len(values[0]) - (least - room), NARROWEST))
        room = width - len("  ".join([place, *values])) - 2
    name = shortened(name, max(min(name_width, room), NARROWEST), both_ends=True)
    return "  ".join([place, name.ljust(min(name_width, room)), *values]).rstrip()


def _value(name: str, value: float) -> str:
    return f"{shortened(name.removeprefix('eval/'), 28, both_ends=True)} {value:.4g}"


def table(multirun: Multirun, width: int, height: int) -> Group:
    """Return the table: a heading, and a line for each cell that runs as far as they fit.

    Args:
        multirun: the cells.
        width, height: characters and lines of the screen.
    """
    running = multirun.of("running", "killed")
    most = max(height - 4, 1)
    grid = Table.grid(padding=(0, 2, 0, 0))
    names, steps, left, phases = (
        zip(*map(_row, running[:most]), strict=True) if running else [()] * 4
    )
    columns = [
        Column(names, LEAST_NAME, both_ends=True), Column(steps), Column(left),
        Column(phases, optional=True),
    ]  # fmt: skip
    for cell, (name, *rest) in zip(running, fitted(columns, width - BAR - 2), strict=False):
        record = cell.record
        bar = ProgressBar(
            total=record.get("total") or 1, completed=record.get("step") or 0, width=BAR
        )
        texts = [Text(text, no_wrap=True) for text in (name, *rest)]
        grid.add_row(texts[0], bar, *texts[1:])
    more = len(running) - most
    parts: list[Text | Table] = [Text(heading(multirun, width), no_wrap=True), grid]
    if more > 0:
        parts.append(Text(f"and {more} more running"))
    return Group(*parts)


BAR = 10
"""Characters of a bar."""


def _row(cell: Cell) -> list[str]:
    """Return a running cell's name, steps, time left and phase."""
    record = cell.record
    steps = f"{record['step']:,}/{record['total']:,}" if "total" in record else "starting"
    left = record.get("left")
    phase = str(record.get("phase") or "")
    if cell.status == "killed":
        phase = "killed"
    elif cell.silent_s > SILENT_S:
        phase = f"silent for {in_words(cell.silent_s)}"
    return [rounded(cell.name), steps, "" if left is None else f"{in_words(left)} left", phase]


class Display:
    """Shows a multirun while it goes, by a thread of its own.

    Args:
        multirun: the cells.
    """

    INTERVAL_S = 0.5
    PLAIN_INTERVAL_S = 60.0
    """Seconds between two headings where there is no terminal."""

    def __init__(self, multirun: Multirun) -> None:
        self.multirun = multirun
        self._explained: set[str] = set()
        self._ended = 0
        self._lock = threading.RLock()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the multirun while the block lasts; leave the lines of what has ended."""
        over = threading.Event()
        live = _live() if sys.stderr.isatty() else None
        if live is not None:
            with suppress(BrokenPipeError):
                live.start()  # before a cell redirects the standard error, too
        thread = threading.Thread(target=self._follow_quietly, args=(over, live), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if live is not None:
                live.stop()

    def _follow_quietly(self, over: threading.Event, live: Live | None) -> None:
        with suppress(BrokenPipeError):  # of `| head`: the command ends when it prints next
            self._follow(over, live)

    def _follow(self, over: threading.Event, live: Live | None) -> None:
        since = 0.0
        while not over.wait(self.INTERVAL_S):
            self.update()
            since += self.INTERVAL_S
            if live is not None:
                width, height = live.console.size
                live.update(table(self.multirun, width, height), refresh=True)
            elif since >= self.PLAIN_INTERVAL_S:
                since = 0.0
                print(heading(self.multirun, _width()), flush=True)

    def update(self) -> None:
        """Print a line for each cell that has ended since the last call."""
        with self._lock:
            for cell in self.multirun.poll():
                self._say(cell)

    def begin(self, cells: Sequence[Cell]) -> None:
        """Wait for workers of cells, also of such as were left to another command before."""
        with self._lock:  # not between reading a heartbeat and taking what it says
            for cell in cells:
                cell.begin()

    def end(self, cell: Cell, status: Status, message: str, computed: bool = True) -> None:
        """Take what a launcher says has become of a cell, unless its worker has said it."""
        with self._lock:
            if cell.status not in OVER:
                cell.end(status, message, computed)
                self._say(cell)

    def _say(self, cell: Cell) -> None:
        """Print what became of a cell, unless it was finished before; what went wrong only once."""
        self._ended += 1
        if cell.status == "failed" and cell.message not in self._explained:
            self._explained.add(cell.message)
            print(f"metaopt: {cell.message}", file=sys.stderr, flush=True)
        if not (cell.computed or cell.shared):
            return
        size = self.multirun.size
        names = max(len(rounded(c.name)) for c in self.multirun.cells)
        place = f"{self._ended:>{len(str(size))}}/{size}"
        print(line(cell, place, names, _width()), flush=True)


class _Screen(Screen):
    """A terminal on which long lines stay whole: a command that is copied has no line break."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **{"soft_wrap": True, **options})


def _live() -> Live:
    """Return the live part of a terminal; what is printed meanwhile appears above it."""
    return Live(
        console=_Screen(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what goes to a file goes on to do so
    )


def _width() -> int:
    return shutil.get_terminal_size((LOG_WIDTH, 24)).columns
