"""One folder, one process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from metaopt.files import lock
from metaopt.files.errors import FolderError, FolderInUseError
from metaopt.files.lock import locked, refuse_held

HOLD = """
import sys, time
from pathlib import Path
from metaopt.files.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Hold a folder in another process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_loser_is_told_who_holds_it_and_a_kill_frees_it(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        said = rf"{tmp_path} is being written to by process {process.pid} on \S+ since \d{{4}}-"
        for attempt in (refuse_held, lambda folder: locked(folder).__enter__()):
            with pytest.raises(FolderInUseError, match=said):
                attempt(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    refuse_held(tmp_path)
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_its_holder_removes_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)  # it still was when that was asked
    assert not lock.is_held(tmp_path / "removed")


def test_a_pipe_in_the_place_of_the_lock_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(FolderError, match=r"\.lock is not a regular file"), locked(tmp_path):
        pass


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(40):
            try:
                with locked(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(1e-4)
                    inside[0] -= 1
            except FolderInUseError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert os.listdir(tmp_path) == []


def test_a_link_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(FolderError, match=r"\.lock -> victim\n.*Delete"), locked(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_try_lock", refuse)
    with locked(tmp_path):
        pass
    assert f"{tmp_path}: its file system has no locks" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    """As a worker of a data loader does after kill -9."""
    code = HOLD.replace("    print", "    import os\n    os.fork()\n    print")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert holder.stdout
    try:
        both = "held\n" * 2  # parent and child, once the fork is behind them
        assert sorted(holder.stdout.read(len(both))) == sorted(both)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
