from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from metaopt.runs import checkpoint


def state(value: float) -> dict[str, object]:
    return {"weight": torch.full((64,), value), "step": 3, "names": ["a", "b"], "none": None}


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", 7, state(1 / 3), keep=2)
    loaded = checkpoint.latest(tmp_path / "c")
    assert loaded is not None
    assert torch.equal(loaded["weight"], torch.full((64,), 1 / 3))
    assert {k: v for k, v in loaded.items() if k != "weight"} == {
        "step": 3, "names": ["a", "b"], "none": None,
    }  # fmt: skip


def test_only_the_newest_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (1, 5, 20, 100_000_000, 100):
        checkpoint.save(tmp_path, step, state(step), keep=3)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [20, 100, 100_000_000]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    older = checkpoint.save(tmp_path, 1, state(1.0), keep=2)
    newest = checkpoint.save(tmp_path, 2, state(2.0), keep=2)
    newest.write_bytes(damaged(newest.read_bytes(), damage))
    loaded = checkpoint.latest(tmp_path)
    assert loaded is not None
    assert loaded["weight"][0] == 1.0
    assert capsys.readouterr().err == f"{newest} is damaged; continuing from {older.name}.\n"


def damaged(content: bytes, how: str) -> bytes:
    if how == "flip":
        at = content.index(torch.full((64,), 2.0).numpy().tobytes()) + 10
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    return {"cut": content[: len(content) // 2], "empty": b"", "text": b"not a checkpoint"}[how]


def test_when_all_are_damaged_the_newest_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), keep=2).write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"step_00000002\.pt.*delete"):
        checkpoint.latest(tmp_path)


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "step_00000001.pt")
    with pytest.raises(checkpoint.CheckpointError, match="step_00000001"):
        checkpoint.latest(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    checkpoint.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_text(path, "new")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_tensors(tmp_path / "a.pt", state(1.0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_disk_that_fills_inside_torch_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(Path, "open", lambda *_: full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write_tensors(tmp_path / "a.pt", state(1.0))
    assert os.listdir(tmp_path) == []
