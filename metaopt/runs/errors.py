"""Turns an error into a few lines that say what to do."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

import torch

from metaopt.engine.protocols import NonFiniteError
from metaopt.files.errors import ConfigError, ProcessError
from metaopt.files.writing import write_text
from metaopt.llm.errors import CassetteMiss, LMError, NotUnderstood
from metaopt.runs import checkpoint
from metaopt.runs.provenance import resume_command

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException, folder: Path | None = None) -> str:
    """Return what went wrong and what to do, without a traceback.

    Args:
        folder: the folder of the run that failed, or `None` before there was one.
    """
    if isinstance(error, ProcessError):  # whose cause is explained in it
        return str(error)
    if isinstance(error, NonFiniteError):
        return f"{error}.\n{_after_divergence(folder)}"
    if is_out_of_memory(error):
        first = (str(error).splitlines() or ["the machine has no more"])[0].rstrip(". ")
        return (
            f"Out of memory: {first}.\nMake batches smaller (problem.batch), or the model. "
            f"estimator=unroll keeps less with estimator.schedule=segments or revolve, and no more "
            f"than estimator.memory_budget=<bytes>; estimator=implicit keeps one step."
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"The disk is full, or a quota is reached: {_where(error, folder)}.\n"
            f"Free some space{_continue(folder)}."
        )
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return str(error)
    if isinstance(error, OSError) and (error.errno in FORBIDDEN or folder is None):
        forbidden = error.errno in FORBIDDEN
        what = "Not allowed to write" if forbidden else "The run's folder cannot be made"
        return (
            f"{what}: {_where(error, folder)}.\n"
            f"Choose another folder with hydra.run.dir=<folder> (hydra.sweep.dir for a sweep)."
        )
    if isinstance(error, FileNotFoundError):
        return f"A file is missing: {error.filename}\nCheck the path in the config."
    if isinstance(error, OSError) and error.filename and error.strerror:
        place = error.filename2 or error.filename
        return f"{place} cannot be used: {error.strerror}.{_put_right(folder)}"
    if isinstance(error, LMError) and not isinstance(error, (NotUnderstood, CassetteMiss)):
        what = "Check the model's server, key and name" if error.remote else "Put it right"
        return f"{error}\n{what}{_continue(folder)}."
    if isinstance(error, (ValueError, TypeError, ImportError, NotUnderstood, CassetteMiss)):
        return str(error)
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def report(error: BaseException, folder: Path | None = None, silent: bool = False) -> str:
    """Print the explanation on the standard error, keep the traceback in `error.log`; return it.

    With METAOPT_DEBUG=1 in the environment the traceback is printed as well; before a run has
    written its config that is the only way. A mistake in a config has none worth keeping.

    Args:
        folder: see `explain`.
        silent: leave the explanation to the caller, who prints it.
    """
    text = explain(error, folder)
    if not silent:
        print(f"metaopt: {text}", file=sys.stderr)
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("METAOPT_DEBUG") == "1":
        print(trace, file=sys.stderr)
    if folder is not None and not isinstance(error, ConfigError):
        _keep(trace, folder, silent)
    return text


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: of Python, of numpy, or of torch on any device.

    Or whether that is what an error was raised for, as by a check that evaluates a loss.
    """
    seen: list[BaseException] = []
    raised: BaseException | None = error
    while raised is not None and raised not in seen:  # what hydra raises names its own cause
        if isinstance(raised, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(raised, RuntimeError) and any(words in str(raised) for words in NO_MEMORY):
            return True
        seen.append(raised)
        raised = raised.__cause__
    return False


def _keep(trace: str, folder: Path, silent: bool) -> None:
    if not (folder / "provenance.json").exists():  # no run has begun: nothing is to be left of it
        if not silent:
            print("METAOPT_DEBUG=1 prints the traceback.", file=sys.stderr)
        return
    try:
        write_text(folder / "error.log", trace)
    except OSError:
        print("The traceback could not be kept; METAOPT_DEBUG=1 prints it.", file=sys.stderr)
    else:
        if not silent:
            print(f"The traceback is in {folder / 'error.log'}.", file=sys.stderr)


def _where(error: OSError, folder: Path | None) -> str:
    place = error.filename or folder
    reason = error.strerror or str(error)
    if place is None:
        return reason
    return f"{place} ({reason})" if reason else str(place)


def _continue(folder: Path | None) -> str:
    if folder is None or not (folder / "provenance.json").exists():
        return " and start again"
    return f", then continue with\n  {resume_command(folder, trusting=True)}"


def _put_right(folder: Path | None) -> str:
    if folder is None or not (folder / "provenance.json").exists():
        return ""
    return f"\nPut it right, then continue with\n  {resume_command(folder, trusting=True)}"


def _after_divergence(folder: Path | None) -> str:
    saved = checkpoint.files(folder / "checkpoints") if folder else []
    advice = (
        "Lower a learning rate or clip a gradient (such as problem.inner_optimizer.lr, outer_lr, "
        "optimizer.clip_norm)"
    )
    if folder is None or not saved:
        return f"{advice}; there is no checkpoint before it."
    return (
        f"{advice} in a new run.\nThe last checkpoint before it is {saved[-1][1]};\n"
        f"  {resume_command(folder, trusting=True)}\nrepeats the run from there."
    )
