from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from metaopt.files.errors import FolderError
from metaopt.files.writing import refuse_links, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.part"])
def test_a_link_is_never_written_through(tmp_path: Path, name: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("mine")
    (tmp_path / name).symlink_to(victim)
    try:
        write_text(path, "new")
    except OSError as error:
        assert error.errno == errno.ELOOP  # noqa: PT017
    else:
        assert not path.is_symlink()
        assert path.read_text() == "new"
    assert victim.read_text() == "mine"


def test_links_in_a_folder_are_named_except_those_of_wandb(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for place in ("wandb/run-1", "figures"):
        (folder / place).mkdir(parents=True)
    (folder / "wandb/latest-run").symlink_to("run-1")
    refuse_links(folder)
    (folder / "figures/curve.png").symlink_to(tmp_path / "victim")
    (folder / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(FolderError) as caught:
        refuse_links(folder)
    assert f"{folder}/checkpoints -> {tmp_path}\n" in str(caught.value)
    assert f"{folder}/figures/curve.png -> {tmp_path}/victim\n" in str(caught.value)
