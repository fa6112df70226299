"""Files that are whole or absent, and the checkpoints made of them."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from metaopt.engine import tree

STEP = re.compile(r"step_(\d{8,})\.pt")


class CheckpointError(RuntimeError):
    """There are checkpoints, and none of them can be read."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file next to `path` that takes its place once it is complete and on the disk.

    When the block raises, `path` is as it was and nothing is left behind.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, in one step."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace the content of `path` by JSON, in one step."""
    write_text(path, json.dumps(content, indent=1) + "\n")


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
        CheckpointError: the file is damaged, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CheckpointError(f"{path} is damaged: {broken} has a wrong checksum.")
        state = torch.load(path, weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error
    return tree.unpack(state)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of outer step `step`, drop all but the newest `keep`.

    Args:
        folder: made when absent.
        keep: number of checkpoints to keep, >= 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    write_tensors(path, state)
    for _, old in steps(folder)[:-keep]:
        old.unlink()
    return path


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Return the (step, file) pairs of `folder`, the oldest first; empty when it is absent."""
    files = folder.iterdir() if folder.is_dir() else iter(())
    matched = ((STEP.fullmatch(path.name), path) for path in files)
    return sorted((int(match[1]), path) for match, path in matched if match)


def latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that can be read, or `None` where there is none.

    Damaged files that are skipped are named on the standard error.

    Raises:
        CheckpointError: there are checkpoints and all are damaged; names the newest.
    """
    errors: dict[Path, CheckpointError] = {}
    for _, path in reversed(steps(folder)):
        try:
            state: dict[str, Any] = read_tensors(path)
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
