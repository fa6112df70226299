"""The command line in a process of its own, which a test may kill."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["imported"])


class Command:
    """A running command, forked from a process that has imported the packages.

    Args:
        folder: where it runs; messages go to a file in it.
        arguments: of the command.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.messages = folder / "messages.txt"
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            forkserver.ensure_running()
        self.process = FORKING.Process(target=_run, args=(str(folder), *arguments), daemon=True)
        self.process.start()

    def running(self) -> bool:
        """Return whether it has not ended."""
        return self.process.is_alive()

    def send(self, signum: int) -> None:
        """Send it a signal, if it is still running."""
        if self.running() and self.process.pid:
            os.kill(self.process.pid, signum)

    def end(self, timeout: float = 300.0) -> int:
        """Wait for its end; return its status, which is minus the signal that ended it."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s"
        assert "Traceback" not in self.said()
        return self.process.exitcode

    def said(self) -> str:
        """Return its messages."""
        return self.messages.read_text()


def _run(folder: str, *arguments: str) -> None:
    from metaopt.cli import main

    os.chdir(folder)
    os.environ["GIT_DIR"] = str(Path(folder, "none"))
    for stream, name in ((1, os.devnull), (2, "messages.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["metaopt", *arguments]
    main()
