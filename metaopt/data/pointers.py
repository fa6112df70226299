"""Files that stand in for data that has not been downloaded: pointers of Git LFS and git-annex."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

START = 256
"""Bytes at the start of a file that tell what it is."""

ANNEX = re.compile(rb"(\.\./)*(\.git/annex|/annex|annex)/objects/")


def refuse_pointer(path: Path) -> None:
    """Raise a `ValueError` where a file is a pointer, a link to what is not there, or a page."""
    if path.is_symlink() and not path.exists():  # a file of git-annex is a link until it is there
        target = os.readlink(path)
        refuse_pointing(path, target.encode())
        raise ValueError(f"{path} is a symbolic link to {target}, which is not there.")
    with path.open("rb") as file:
        refuse_pointing(path, file.read(START))


def refuse_pointing(path: Path, start: bytes) -> None:
    """Raise a `ValueError` where a file that begins so, once decompressed, is none of data."""
    start = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in its repository, or "
            f"download the file itself."
        )
    if ANNEX.match(start):
        raise ValueError(
            f"{path} is a git-annex pointer, not the data: run `git annex get` in its repository, "
            f"or download the file itself."
        )
    if start.startswith((b"<!doctype html", b"<html")):
        raise ValueError(
            f"{path} is an HTML page, not data: the download brought a web page. Get the file from "
            f"its raw address."
        )
