"""States of tensors in files, and the checkpoints made of them."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from metaopt.engine import tree
from metaopt.files.errors import DamagedFileError
from metaopt.files.writing import replacing
from metaopt.runs.folder import steps as steps

PARTS = ("engine", "solution", "last", "seconds", "config", "log")
"""What the state in a checkpoint has; see `metaopt.runs.run.Run`."""


class CheckpointError(DamagedFileError):
    """A file of tensors is damaged, or there are checkpoints and none of them can be read."""


def write_tensors(path: Path, state: Any) -> None:
    """Replace the content of `path` by a tree of tensors and primitives, in one step.

    Raises:
        OSError: the file cannot be written (no space, no permission).
    """
    with replacing(path) as file:
        try:
            torch.save(tree.pack(state), file)
        except RuntimeError as error:
            # torch's zip writer hides the operating system's error in the context of its own.
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None


def read_tensors(path: Path) -> Any:
    """Return what `write_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
        UnknownStateError: it is of a problem that is not imported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return tree.unpack(torch.load(path, weights_only=True))
    except tree.UnknownStateError:
        raise
    except Exception as error:  # what a flipped bit makes zip, pickle and torch raise has no end
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}.") from error
    raise CheckpointError(f"{path} is damaged: {broken} has a wrong checksum.")


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of outer step `step`; see `prune`.

    Args:
        folder: made when absent.
        keep: number of checkpoints to keep, >= 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    write_tensors(path, state)
    prune(folder, step, keep)
    return path


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` up to `step`.

    Later ones were damaged, or the run would not be at `step`.
    """
    kept = [number for number, _ in steps(folder) if number <= step][-keep:]
    for number, old in steps(folder):
        if number not in kept:
            old.unlink()


def latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that can be read, or `None` where there is none.

    Damaged files that are skipped are named on the standard error.

    Raises:
        CheckpointError: there are checkpoints and all are damaged; names the newest.
    """
    errors: dict[Path, CheckpointError] = {}
    for step, path in reversed(steps(folder)):
        try:
            state = _read(path, step)
        except CheckpointError as error:
            errors[path] = error
        else:
            for damaged in errors:
                print(f"{damaged} is damaged; continuing from {path.name}.", file=sys.stderr)
            return state
    if not errors:
        return None
    newest = next(iter(errors.values()))
    raise CheckpointError(
        f"{newest} No older checkpoint is left; delete {folder} to start from the first step."
    ) from newest


def _read(path: Path, step: int) -> dict[str, Any]:
    """Return the state of the checkpoint of outer step `step`."""
    state = read_tensors(path)
    if not isinstance(state, dict) or not {*PARTS} <= {*state}:
        raise CheckpointError(f"{path} is damaged: it holds no state of a run.")
    done = state["engine"].get("outer_step") if isinstance(state["engine"], dict) else None
    if done != step:
        raise CheckpointError(f"{path} is damaged: it holds the state of outer step {done}.")
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
