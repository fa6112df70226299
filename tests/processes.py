"""The command line in a process of its own, which a test may kill."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import torch

from metaopt.runs.tracking import Jsonl

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["imported"])


def fork(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start `work(*arguments)` in a process forked from one that has imported the packages."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    process = FORKING.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


class Command:
    """A running command, forked from a process that has imported the packages.

    Args:
        folder: where it runs; messages go to a file in it.
        arguments: of the command.
        kill_at: it kills itself in its n-th step of writing files, see `stepping`.
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
        self.process = fork(_run, str(folder), {**os.environ}, kill_at, signal_at, *arguments)

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


Step = Callable[[int, Callable[[], object], Callable[[], object]], object]
"""What is done in the n-th step of writing, with what tears the step and what mends it."""


def stepping(act: Step) -> Callable[[], int]:
    """Call `act(n, tear, mend)` in this process's n-th step of writing; return what counts them.

    A step is a part of a file of tensors or of a line of the log, what brings a file to the disk
    or puts it in its place, and what removes one. `tear` writes half of such a part, as far as a
    kill lets it come, and `mend` takes that back.
    """
    count = itertools.count(1)

    def step(tear: Callable[[], object] = int, mend: Callable[[], object] = int) -> None:
        act(next(count), tear, mend)

    def patch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            step()
            return original(*args, **kwargs)

        setattr(owner, name, replaced)

    def save(state: Any, file: BinaryIO) -> None:
        whole = io.BytesIO()
        torch_save(state, whole)
        half, start = whole.getvalue()[: len(whole.getvalue()) // 2], file.tell()
        step(
            lambda: (file.write(half), file.flush()),
            lambda: (file.seek(start), file.truncate()),
        )
        file.write(whole.getvalue())

    def record(self: Jsonl, *values: Any) -> None:
        def tear() -> None:
            with self.path.open("ab") as file:
                file.write(PART)

        step(tear, lambda: os.truncate(self.path, self.path.stat().st_size - len(PART)))
        jsonl_record(self, *values)

    torch_save, jsonl_record = torch.save, Jsonl.record
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        patch(owner, name)
    torch.save, Jsonl.record = save, record  # type: ignore[assignment, method-assign]
    return lambda: next(count) - 1


PART = b'{"outer_step": 3, "ou'
"""Of a line of the log."""


def killing(at: int) -> Step:
    """Return what kills this process in a step."""

    def kill(number: int, tear: Callable[[], object], mend: Callable[[], object]) -> None:
        if number == at:
            tear()
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def copying(folder: Path, into: Path) -> Step:
    """Return what copies, in each step, the folder that a kill in it would leave."""

    def copy(number: int, tear: Callable[[], object], mend: Callable[[], object]) -> None:
        tear()
        if folder.exists():
            shutil.copytree(folder, into / str(number))
        mend()

    return copy


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
    folder: str,
    environment: dict[str, str],
    kill_at: int | None,
    signal_at: tuple[int, int] | None,
    *arguments: str,
) -> None:
    settle(folder, environment)
    if signal_at is not None:
        signalling(*signal_at)
    if kill_at is None:
        call(*arguments)
    counted = stepping(killing(kill_at))
    try:
        call(*arguments)
    finally:
        Path("steps.txt").write_text(str(counted()))


def settle(folder: str, environment: dict[str, str]) -> None:
    """Give a forked process its folder, and the environment and the streams of a command."""
    os.chdir(folder)
    os.environ.clear()
    # Of the tests' own process: it would take the id of a killed run to be in use.
    own = {"GIT_DIR": str(Path(folder, "none"))}
    os.environ.update({k: v for k, v in environment.items() if k != "WANDB_SERVICE"} | own)
    for stream, name in ((1, os.devnull), (2, "messages.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)


def call(*arguments: str) -> None:
    """Run a command in this process.

    Raises:
        SystemExit: its end.
    """
    from metaopt.cli import main

    sys.argv = ["metaopt", *arguments]
    main()
