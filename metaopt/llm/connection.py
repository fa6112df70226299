"""A connection to a sqlite file whose errors name the file and say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaopt.files.errors import DamagedFileError


class Cursor(sqlite3.Cursor):
    """Raises what `named` says."""

    def execute(self, *arguments: Any) -> Any:
        """See `sqlite3.Cursor.execute`."""
        with named(self.connection):
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        """See `sqlite3.Cursor.executemany`."""
        with named(self.connection):
            return super().executemany(*arguments)

    def fetchone(self) -> Any:
        """See `sqlite3.Cursor.fetchone`."""
        with named(self.connection):
            return super().fetchone()

    def fetchall(self) -> Any:
        """See `sqlite3.Cursor.fetchall`."""
        with named(self.connection):
            return super().fetchall()

    def __next__(self) -> Any:
        with named(self.connection):
            return super().__next__()


class Connection(sqlite3.Connection):
    """A connection whose cursors are of the kind above."""

    path: Path | None = None

    def execute(self, *arguments: Any) -> Any:
        """See `sqlite3.Connection.execute`."""
        return self.cursor(Cursor).execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        """See `sqlite3.Connection.executemany`."""
        return self.cursor(Cursor).executemany(*arguments)

    def commit(self) -> None:
        """See `sqlite3.Connection.commit`."""
        with named(self):
            super().commit()


@contextmanager
def named(connection: sqlite3.Connection) -> Iterator[None]:
    """Name the file in errors of the disk.

    Raises:
        OSError: the disk is full, or cannot be read or written.
        DamagedFileError: the file is no longer a database.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        path, text = getattr(connection, "path", None), str(error)
        for said, number in (("is full", errno.ENOSPC), ("disk I/O error", errno.EIO)):
            if said in text:
                raise OSError(number, os.strerror(number), str(path)) from error
        if "malformed" in text:
            raise DamagedFileError(
                f"{path} is damaged: {text}. Restore it from a copy, or delete it: the answers in "
                f"it are then asked for, and paid, again."
            ) from error
        raise
