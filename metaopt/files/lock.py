"""One folder, one process: a lock of the operating system, which a crash does not leave behind."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from metaopt.files.errors import FolderError, FolderInUseError
from metaopt.files.writing import NO_FOLLOW, refuse_links

NAME = ".lock"

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # beyond the text: Windows bars its readers
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go() -> None:
    """Close what a fork has copied: a child that outlives its parent would hold the lock on."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes, and other threads of this one, from writing to a folder.

    The lock is `flock` on the file `.lock`, so it ends with the process, whatever ends it. It holds
    between machines that share the folder where their file system passes locks on: NFS from version
    4 on, or version 3 with its lock daemon; not mounts with `nolock` or `local_lock`. A file system
    without locks is said on the standard error.

    Raises:
        FolderInUseError: somebody else holds it; says who.
        FolderError: `.lock` is a symbolic link.
        OSError: `.lock` cannot be made.
    """
    path = folder / NAME
    descriptor = _acquire(path)
    _HELD.add(descriptor)
    try:
        _say_who(descriptor)
        yield
    finally:
        if descriptor in _HELD:  # not in a child that was forked inside the block
            # Removed while it is held: who opened it before finds that it is no longer the file.
            path.unlink(missing_ok=True)
            _HELD.discard(descriptor)
            os.close(descriptor)


@contextmanager
def waiting_for(folder: Path, seconds: float = 0.02) -> Iterator[None]:
    """Hold the lock of a folder as soon as nobody else does; asked for every `seconds`."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except FolderInUseError:
                time.sleep(seconds)
        yield


def refuse_held(folder: Path) -> None:
    """Raise a `FolderInUseError` if another process writes to a folder; a folder may be missing."""
    if (folder / NAME).exists():
        # The process that held a folder may remove it, as that of a run that is refused does.
        with suppress(FileNotFoundError), locked(folder):
            pass


def is_held(folder: Path) -> bool:
    """Return whether another process writes to a folder; a folder may be missing."""
    try:
        refuse_held(folder)
    except FolderInUseError:
        return True
    return False


def holder(folder: Path) -> str | None:
    """Return who writes to a folder, as far as `.lock` says, or `None`; takes no lock itself.

    What a killed process of this machine has left counts for nothing. Of another machine that
    cannot be told.
    """
    try:
        who = json.loads((folder / NAME).read_bytes()[:1000])
        pid, host = int(who["pid"]), str(who["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if host == socket.gethostname() and not is_alive(pid):
        return None
    return f"process {pid} on {host}"


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists, as far as the system lets one see."""
    if sys.platform == "win32":  # where the signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _acquire(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        except OSError:
            refuse_links(path.parent)  # which names .lock where it is one
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # such as a pipe, which takes no text
            os.close(descriptor)
            raise FolderError(f"{path} is not a regular file. Delete it, if nobody else uses it.")
        try:
            _try_lock(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise FolderInUseError(
                    f"{path.parent} is being written to by {holder}. Wait for it, stop it, or "
                    f"choose another folder."
                ) from None
            print(f"{path.parent}: its file system has no locks; make sure that no other process "
                  f"writes to it.", file=sys.stderr)  # fmt: skip
            return descriptor
        if _is(descriptor, path):
            return descriptor
        os.close(descriptor)  # the last holder has removed it in the meantime


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _say_who(descriptor: int) -> None:
    now = datetime.now(timezone.utc).astimezone().isoformat(" ", "seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.read(descriptor, 1000))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which has not said yet who it is
