"""The command line in a process of its own, which a test may kill."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import torch

from metaopt.runs.tracking import Jsonl

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["imported"])


class Command:
    """A running command, forked from a process that has imported the packages.

    Args:
        folder: where it runs; messages go to a file in it.
        arguments: of the command.
        kill_at: it kills itself in its n-th step of writing files, see `killing`.
        signal_at: outer step and signal, which it sends itself then, see `signalling`.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        kill_at: int | None = None,
        signal_at: tuple[int, int] | None = None,
    ) -> None:
        self.messages = folder / "messages.txt"
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            forkserver.ensure_running()
        self.process = FORKING.Process(
            target=_run, args=(str(folder), kill_at, signal_at, *arguments), daemon=True
        )
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


def killing(at: int | None) -> Callable[[], int]:
    """Kill this process in its n-th step of writing files; return what counts the steps.

    A step is a part of a file of tensors or of a line of the log, what brings a file to the disk
    or puts it in its place, and what removes one.
    """
    count = itertools.count(1)

    def step(before: Callable[[], object] = lambda: None) -> None:
        if next(count) == at:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def patch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            step()
            return original(*args, **kwargs)

        setattr(owner, name, replaced)

    def save(state: Any, file: BinaryIO) -> None:
        whole = io.BytesIO()
        torch_save(state, whole)
        half = whole.getvalue()[: len(whole.getvalue()) // 2]
        step(lambda: (file.write(half), file.flush()))
        file.write(whole.getvalue())

    def record(self: Jsonl, *values: Any) -> None:
        step(lambda: self.path.write_bytes(self.path.read_bytes() + b'{"outer_step": 3, "ou'))
        jsonl_record(self, *values)

    torch_save, jsonl_record = torch.save, Jsonl.record
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        patch(owner, name)
    torch.save, Jsonl.record = save, record  # type: ignore[assignment, method-assign]
    return lambda: next(count) - 1


def signalling(step: int, signum: int) -> None:
    """Send this process a signal once a run in it has logged an outer step.

    On any machine: another process that watches the log may come too late.
    """
    original = Jsonl.record

    def record(self: Jsonl, at: int, values: Any) -> None:
        original(self, at, values)
        if at == step:
            os.kill(os.getpid(), signum)

    Jsonl.record = record  # type: ignore[method-assign]


def _run(
    folder: str, kill_at: int | None, signal_at: tuple[int, int] | None, *arguments: str
) -> None:
    from metaopt.cli import main

    os.chdir(folder)
    # Of the tests' own process: it would take the id of a killed run to be in use.
    os.environ.pop("WANDB_SERVICE", None)
    os.environ["GIT_DIR"] = str(Path(folder, "none"))
    for stream, name in ((1, os.devnull), (2, "messages.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["metaopt", *arguments]
    if signal_at is not None:
        signalling(*signal_at)
    if kill_at is None:
        main()
    counted = killing(kill_at)
    try:
        main()
    finally:
        Path("steps.txt").write_text(str(counted()))
