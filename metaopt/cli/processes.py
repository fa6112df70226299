"""Several processes of torchrun as one run: the first drives hydra, the others serve it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from metaopt.cli import folders, torchrun
from metaopt.cli.build import build
from metaopt.engine import distributed
from metaopt.files.errors import ProcessError
from metaopt.files.reading import steps
from metaopt.runs.errors import explain, report
from metaopt.runs.provenance import resume_command

RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""How long processes wait for one another at the start: one may still be importing torch."""

COLLECTIVE_TIMEOUT = timedelta(days=30)
"""How long they wait for one another later, as for figures. One that ends is noticed at once."""

GRACE_S = 10.0
"""Seconds that a process that fails waits for the others to fail, too, before it ends them."""

FAILED_KEY = "metaopt/left"
"""Key of the store: the first process that has left the others."""


class Task(NamedTuple):
    """What the first process gives to the others: a run, in the working folder `place`."""

    folder: Path
    config: dict[str, Any]
    place: str


_store: Any = None  # what the processes tell one another beside the averages of a run
_runs = 0


def as_one(command: Callable[[], int], arguments: Sequence[str]) -> int:
    """Run a command in the first process of torchrun, which the others serve; return its status.

    Under torchrun each process ends here, with that status, unless an error is raised.

    Args:
        command: calls `share` before, and `together` around each run.
        arguments: of the command line.
    """
    if torchrun.processes() == 1:
        return command()
    with _group():
        if distributed.rank():
            status = _serve(arguments)
        else:
            try:
                status = command()
            finally:
                with suppress(RuntimeError):  # to those that are still there
                    distributed.from_first(lambda: None)
    return _end_without_finalizing(status)


@contextmanager
def _group() -> Iterator[None]:
    """Meet the other processes; each has a GPU of its own where there are enough."""
    global _store
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if gpus:
        torch.cuda.set_device(local)
    _store, rank, size = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=_store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        _store = None


def _serve(arguments: Sequence[str]) -> int:
    """Compute what the first process says, until it says that there is no more.

    What others would print is what the first one prints.
    """
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        while (task := share()) is not None:
            with suppress(Exception), together(task.folder, task.config):
                os.chdir(task.place)
                folders.use(arguments)
                build(task.folder, task.config, watch=None)()
    return 0


def _end_without_finalizing(status: int) -> NoReturn:
    """End this process after what is registered for its exit.

    A native thread, such as gloo's or Arrow's, that drops a Python reference while the interpreter
    is finalized aborts the process, and torchrun would call a finished run failed
    (pytorch/pytorch#179291).
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def share(folder: Path | None = None, config: dict[str, Any] | None = None) -> Task | None:
    """Give a run to the other processes, or wait for one; `None` says that there is no more."""
    task = None if folder is None or config is None else Task(folder, config, os.getcwd())
    try:
        return distributed.from_first(lambda: task)
    except RuntimeError as error:
        _leave(error, folder)


@contextmanager
def together(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Run a block in all processes; what fails in one of them fails in all.

    An error that all have, such as a loss that is not finite, ends the block alone. One that some
    have leaves the others waiting in an average for ever: after `GRACE_S` it ends the command.

    Args:
        folder, config: of the run.

    Raises:
        ProcessError: the block has failed in another process alone, after its last average.
    """
    global _runs
    if _store is None:
        yield
        return
    _runs += 1
    error: Exception | None = None
    try:
        with distributed.splitting_batches(config.get("ranks") != "own"):
            yield
    except Exception as raised:
        error = raised
    texts = _errors(error, folder)
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text:
            raise ProcessError(f"process {rank} failed: {text}")


def _errors(error: Exception | None, folder: Path) -> list[str]:
    """Return the message of each process, empty where it has not failed."""
    if error is not None and _is_of_connection(error):
        _leave(error, folder)
    keys = [f"metaopt/{_runs}/{rank}" for rank in range(distributed.world_size())]
    _store.set(keys[distributed.rank()], "" if error is None else explain(error))
    started = time.monotonic()
    while not _store.check(keys):  # `wait` would print of its own when it has waited in vain
        if error is not None and time.monotonic() - started > GRACE_S:
            _leave(error, folder)
        time.sleep(0.005)
    if _store.check([FAILED_KEY]):  # with an error of its own, which this one follows from
        os._exit(1)
    return [_store.get(key).decode() for key in keys]


def _leave(error: Exception, folder: Path | None) -> NoReturn:
    """End this process, and say why where it is the first to do so; torchrun ends the others."""
    with suppress(RuntimeError), redirect_stderr(sys.__stderr__):
        if not _store.check([FAILED_KEY]):
            _store.set(FAILED_KEY, "")
            why = f"process {distributed.rank()} failed: {explain(error)}"
            if _is_of_connection(error):  # it could not say so itself
                why = "another process was killed or has crashed; torchrun's report names it."
            if folder is not None and steps(folder / "checkpoints"):
                why += f"\nContinue with\n  {resume_command(folder, trusting=True)}"
            failed = ProcessError(why)
            failed.__cause__ = error
            report(failed, folder)
    sys.stdout.flush()
    os._exit(1)  # nothing of what others wait for can be ended in order


def _is_of_connection(error: Exception) -> bool:
    """Return whether an error says that another process is gone; gloo's have no class."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
