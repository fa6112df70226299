"""The cells of a multirun as the command follows them: by their files, whatever process runs them.

A worker may be a process of joblib, submitit or Ray, on this machine or another one. What it says
of its cell is a heartbeat below the sweep's folder; what has come out is in the cell's folder.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metaopt.cli import folders
from metaopt.cli.jobs import Outcome
from metaopt.files.errors import FolderError
from metaopt.files.lock import is_alive
from metaopt.runs.folder import result_of
from metaopt.runs.heartbeat import Heartbeat, gone, read_heartbeat
from metaopt.runs.status import OVER, Status

HEARTBEATS = ".heartbeats"
"""Folder below that of a sweep, while it goes."""

SILENT_S = 15.0
"""Seconds without a heartbeat after which a worker on another machine is taken for dead."""

STALE_S = 3600.0
"""Seconds after which a heartbeat of a command on another machine is taken for one it has left."""


def heartbeat_path(sweep: Path, folder: Path, command: str) -> Path:
    """Return where the worker of a cell in `folder` says how far it is.

    Args:
        sweep: its folder.
        folder: of the cell.
        command: tells one that computes the sweep from others that do so at the same time.
    """
    cell = sha256(os.fsencode(folder)).hexdigest()[:16]
    return sweep / HEARTBEATS / f"{cell}-{command}.json"


def is_stale(path: Path) -> bool:
    """Return whether the command of a heartbeat has ended, as far as can be told from here."""
    _, _, command = path.name.partition("-")
    host, _, pid = command.partition(".json")[0].rpartition("-")
    if host == socket.gethostname() and pid.isdecimal():
        return not is_alive(int(pid))
    try:
        return time.time() - path.stat().st_mtime > STALE_S
    except OSError:  # removed in the meantime
        return False


@dataclass(frozen=True)
class CellTask:
    """The task function of a multirun, where a launcher runs it.

    Args:
        task: runs a config; takes `watch`, of `metaopt.runs.run.Run`.
        command: see `heartbeat_path`.
        working_folder: of the command: the workers of a Ray cluster start elsewhere.
        config_dirs: the user's, as they were given.
        names: of the cells that a launcher gets, by their numbers; warnings begin with them.
    """

    task: Callable[..., Outcome]
    command: str
    working_folder: Path
    config_dirs: Sequence[str] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    def __call__(self, config: DictConfig, **options: Any) -> Outcome:
        """Run a cell, and keep its heartbeat up to date."""
        state: Any = HydraConfig.get()
        if not state.job.chdir and Path.cwd() != self.working_folder:
            os.chdir(self.working_folder)
        if folders.given() != list(self.config_dirs):  # in a process that the command did not fork
            folders.use([f"--config-dir={place}" for place in self.config_dirs])
        sweep, folder = Path(state.sweep.dir).absolute(), Path(state.runtime.output_dir)
        path = heartbeat_path(sweep, folder, self.command)
        heartbeat = Heartbeat(path)
        name = self.names.get(state.job.num, "")
        with heartbeat.beating(), redirect_stderr(NamedStream(name, sys.stderr)):
            outcome = self.task(config, watch=heartbeat, **options)
        heartbeat.end(outcome.status, outcome.message, outcome.computed)
        return outcome


class NamedStream(io.TextIOBase):
    """A stream with the name of a cell before each message of the thread that makes it.

    Other threads are those that show the sweep, where it runs in the process of the command.

    Args:
        name: of the cell; "" adds nothing.
        stream: that is written to.
    """

    def __init__(self, name: str, stream: TextIO) -> None:
        self._before, self._stream = f"{name}: " if name else "", stream
        self._thread, self._begins = threading.get_ident(), True

    def write(self, text: str) -> int:
        """Write a text as it is after the name; a message may have several lines."""
        if threading.get_ident() == self._thread and text:
            if self._begins and text.strip():
                self._stream.write(self._before)
            self._begins = text.endswith("\n")
        return self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Return what the stream says."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return what the stream says."""
        return self._stream.fileno()


@dataclass
class Cell:
    """A cell of a multirun.

    Args:
        name: what tells it from the others.
        folder: of its run.
        heartbeat: the file of its worker.
        command: what runs it alone.
        stated: metrics that its config names, see `metaopt.runs.headline`.

    Attributes:
        status: "waiting", "running", "elsewhere", "killed" or one of `OVER`.
        message: what went wrong; who computes it, if another command does.
        computed: whether this command did something of it, or it was finished before.
        shared: whether another command computed it meanwhile.
        metrics: the final ones.
        record: the last heartbeat.
        seconds: that it took here, where this command did something of it.
    """

    name: str
    folder: Path
    heartbeat: Path
    command: str
    stated: Sequence[str] = ()
    status: Status = "waiting"
    message: str = ""
    computed: bool = True
    shared: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    _changed: float = 0.0

    def poll(self) -> None:
        """Read what its worker says."""
        # Elsewhere is what a launcher returned: the heartbeat that is seen may be older than that.
        record = None if self.status in (*OVER, "elsewhere") else read_heartbeat(self.heartbeat)
        if record is None:
            return
        if record.get("time") != self.record.get("time"):
            self._changed = time.monotonic()
        self.record = record
        if record.get("status") in OVER:
            message, computed = str(record.get("message", "")), bool(record.get("computed", True))
            self.end(record["status"], message, computed)
        elif record.get("status") == "elsewhere":
            self.leave(str(record.get("message", "")))
        else:
            self.status = "killed" if gone(record) else "running"

    @property
    def alive(self) -> bool:
        """Whether a worker is computing it, as far as can be seen."""
        return self.status == "running" and self.silent_s < SILENT_S

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self._changed

    def begin(self) -> None:
        """Wait for a worker, without what was said of it before."""
        self.status, self.record = "waiting", {}

    def leave(self, message: str) -> None:
        """Leave it to another command, which computes it; `message` says who."""
        self.status, self.message, self.shared = "elsewhere", message, True

    def end(self, status: Status, message: str = "", computed: bool = True) -> None:
        """Take what has become of it; read its result."""
        self.status, self.message, self.computed = status, message, computed
        self.seconds = self.record.get("seconds") if computed else None
        if status != "finished":
            return
        result = None
        with suppress(OSError, FolderError):  # named where it is read next
            result = result_of(self.folder)
        if result is None:
            self.status = "failed"
            self.message = (
                f"A worker has finished {self.folder}, and its result is not there: workers on "
                f"other machines must share the file system of the command."
            )
            return
        self.metrics = {k: v for k, v in result["metrics"].items() if v is not None}


class Multirun:
    """All cells of a multirun.

    Attributes:
        command: see `heartbeat_path`.
        folder: of the sweep.
        cells: those that a launcher has got.
        total: how many there will be; `None` where that is not known.
        keys: those in which cells differ, for their names; `None`: whatever differs among them.
        workers: most cells that have run at once.
    """

    def __init__(self) -> None:
        self.command = f"{socket.gethostname()}-{os.getpid()}"
        self.folder = Path()
        self.cells: list[Cell] = []
        self.total: int | None = None
        self.keys: set[str] | None = None
        self.workers = 1

    def poll(self) -> list[Cell]:
        """Read what the workers say; return the cells that have ended since the last call."""
        open_cells = [cell for cell in self.cells if cell.status not in OVER]
        for cell in open_cells:
            cell.poll()
        self.workers = max(self.workers, len(self.of("running")))
        return [cell for cell in open_cells if cell.status in OVER]

    def of(self, *statuses: Status) -> list[Cell]:
        """Return the cells that have one of some statuses."""
        return [cell for cell in self.cells if cell.status in statuses]

    @property
    def size(self) -> int:
        """How many cells there are or, where that is known, will be."""
        return max(len(self.cells), self.total or 0)

    def left_s(self) -> float | None:
        """Return an estimate of the seconds left; `None` before there is anything to go by.

        A running cell goes on at its speed; one that waits takes the mean of those that ran; as
        many as have run at once share the work.
        """
        running = [
            (c.record.get("seconds") or 0.0, c.record.get("left")) for c in self.of("running")
        ]
        over = [cell for cell in self.of("finished", "pruned") if cell.computed]
        whole = [cell.seconds for cell in over if cell.seconds is not None]
        whole += [spent + left for spent, left in running if left is not None]
        if not whole:
            return None
        mean = sum(whole) / len(whole)
        each = [max(mean - spent, 0.0) if left is None else left for spent, left in running]
        waiting = self.size - len(self.of(*OVER, "elsewhere")) - len(running)
        return max([(sum(each) + waiting * mean) / self.workers, *each])
