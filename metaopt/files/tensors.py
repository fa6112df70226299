"""Trees of tensors and primitives in files: written whole, read without running anything."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from metaopt.engine import tree
from metaopt.files.errors import DamagedFileError
from metaopt.files.writing import replacing


class CheckpointError(DamagedFileError):
    """A file of tensors is damaged, or there are checkpoints and none of them can be read."""


def write_tensors(path: Path, state: Any, sync: bool = True) -> None:
    """Replace the content of `path` by a tree of tensors and primitives, in one step.

    Args:
        path: of the file.
        state: what it is to hold.
        sync: whether to wait for the disk, see `metaopt.files.writing.replacing`.

    Raises:
        OSError: the file cannot be written (no space, no permission).
    """
    with replacing(path, sync) as file:
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
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise CheckpointError(f"{path} cannot be read: it is not a regular file.")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return tree.unpack(torch.load(path, weights_only=True, map_location=_place()))
    except tree.UnknownStateError:
        raise
    except Exception as error:  # what a flipped bit makes zip, pickle and torch raise has no end
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}.") from error
    raise CheckpointError(f"{path} is damaged: {broken} has a wrong checksum.")


def _place() -> dict[str, str] | None:
    """Return where tensors of the first GPU go: to that of this process, of torchrun's several."""
    if not torch.cuda.is_initialized():
        return None
    return {"cuda:0": f"cuda:{torch.cuda.current_device()}"}


def _first_line(error: BaseException) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
