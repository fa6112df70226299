"""Files that are whole or absent, and never written through a symbolic link."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from metaopt.files.errors import FolderError, listed

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file next to `path` that takes its place once it is complete and on the disk.

    When the block raises, `path` is as it was and nothing is left behind. A symbolic link at
    `path` is replaced, and what it points to is left alone.

    Args:
        path: of the file.
        sync: whether to wait for the disk; otherwise a crash of the machine may leave a part of it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb", opener=_open) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | NO_FOLLOW, 0o666)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, in one step."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace the content of `path` by JSON, in one step."""
    write_text(path, as_text(content))


def as_text(content: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(content, indent=1) + "\n"


def refuse_link(path: Path) -> None:
    """Raise a `FolderError` where a file that is about to be written to is a symbolic link."""
    if path.is_symlink():
        raise FolderError(
            f"{path} is a symbolic link, to {os.readlink(path)}, and nothing is written through "
            f"it. Delete it, or put what it points to in its place."
        )


def refuse_links(folder: Path) -> None:
    """Raise a `FolderError` where a folder that is about to be written to holds a symbolic link.

    A folder from elsewhere could have any file of the user overwritten. What is in `wandb/` is
    wandb's, which makes its links itself.
    """
    links = []
    for place, folders, files in os.walk(folder):
        links += [path for name in (*folders, *files) if (path := Path(place, name)).is_symlink()]
        if Path(place) == folder and "wandb" in folders:
            folders.remove("wandb")
    if links:
        lines = [f"{path} -> {os.readlink(path)}" for path in sorted(links)]
        raise FolderError(
            f"{folder} holds symbolic links, and a run is not written through them:\n"
            f"{listed(lines)}\n"
            f"Nothing was written. Delete them, or put what they point to in their place."
        )
