"""How far a run is, in a small file that its process keeps up to date for another to read."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metaopt.engine.inner_progress import Progress
from metaopt.files.lock import is_alive
from metaopt.runs.status import Status
from metaopt.runs.tracking import Tracker

INTERVAL_S = 1.0


class Heartbeat(Tracker):
    """Writes how far a run is, every `INTERVAL_S` seconds, by a thread of its own.

    The file is replaced as a whole, so that a reader never sees a part of it, and not synchronised
    with the disk: nothing depends on it after the run.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps: dict[str, int] = {}
        self._progress: Progress | None = None
        self._begun = self._first = self._last = time.monotonic()

    def __call__(self, label: str, total: int, done: int = 0) -> Tracker:
        """Be what watches a run (`metaopt.runs.run.Watch`)."""
        self._steps = {"step": done, "from": done, "total": total}
        self._first = self._last = time.monotonic()
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the outer step."""
        self._steps["step"], self._last = step, time.monotonic()

    def follow(self, progress: Progress) -> None:
        """Read the phase of a long outer step."""
        self._progress = progress

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write the file at once, and then while the block lasts."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(INTERVAL_S):
                self._write("running")

        self._write("running")
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def end(self, status: Status, message: str = "", computed: bool = True) -> None:
        """Write what became of the run, see `metaopt.cli.jobs.Outcome`; after `beating`."""
        self._write(status, message, computed)

    def _write(self, status: Status, message: str = "", computed: bool = True) -> None:
        now = time.monotonic()
        record = {
            "status": status,
            "message": message,
            "computed": computed,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            "seconds": now - self._begun,
            "left": self._left(now),
            "phase": self._phase(),
            **self._steps,
        }
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with suppress(OSError):  # a full disk stops the run where it writes results
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(record), encoding="utf-8")
            os.replace(part, self.path)

    def _left(self, now: float) -> float | None:
        """Return the seconds that are left at the mean speed so far."""
        steps = self._steps.get("step", 0) - self._steps.get("from", 0)
        if steps <= 0:
            return None
        return (now - self._first) / steps * (self._steps["total"] - self._steps["step"])

    def _phase(self) -> str:
        phase = None if self._progress is None else self._progress.current
        if phase is None or time.monotonic() - self._last < INTERVAL_S:
            return ""
        return str(phase)


def read_heartbeat(path: Path) -> dict[str, Any] | None:
    """Return what a heartbeat has written last, `None` where there is nothing to read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def gone(record: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote a record was on this machine and is no more."""
    pid = record.get("pid")
    return record.get("host") == socket.gethostname() and type(pid) is int and not is_alive(pid)
