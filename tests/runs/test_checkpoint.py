from __future__ import annotations

import os
import random
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt.engine import tree
from metaopt.files import writing
from metaopt.files.reading import steps
from metaopt.files.tensors import CheckpointError, write_tensors
from metaopt.runs import checkpoint
from metaopt.testing.trees import identical


def state(value: float, step: int = 1) -> dict[str, Any]:
    solution = {"weight": torch.full((64,), value), "names": ["a", "b"], "none": None}
    log = {"bytes": 0, "sha256": ""}
    rest = {"last": {}, "seconds": 0.0, "config": {}, "log": log}
    engine = {"outer_step": step, "seed": 0, "inner": None, "frozen": None, "optimizer": {}}
    engine |= {"estimator": {}, "spent": {}, "stop": None}
    return {"engine": engine, "solution": solution, **rest}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, state(float(step), step), keep)


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", 7, state(1 / 3, 7), keep=2)
    loaded = checkpoint.latest(tmp_path / "c")
    assert loaded is not None
    assert identical(loaded, state(1 / 3, 7))


def test_only_the_newest_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (1, 5, 20, 100, 100_000_000):
        save(tmp_path, step, keep=3)
    assert [step for step, _ in steps(tmp_path)] == [20, 100, 100_000_000]


def test_a_damaged_newest_one_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 9).write_bytes(b"")
    save(tmp_path, 6, keep=1)
    assert [step for step, _ in steps(tmp_path)] == [6]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None


DAMAGE = ("cut", "flip", "empty", "text", "no state", "other step", "folder")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    older, newest = save(tmp_path, 1), save(tmp_path, 2)
    break_(newest, damage)
    loaded = checkpoint.latest(tmp_path)
    assert loaded is not None
    assert loaded["engine"]["outer_step"] == 1
    assert capsys.readouterr().err == f"{newest} is damaged; continuing from {older.name}.\n"


def break_(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flip":
        at = content.index(torch.full((64,), 2.0).numpy().tobytes()) + 10
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how in ("cut", "empty", "text"):
        size = len(content) // 2
        path.write_bytes({"cut": content[:size], "empty": b"", "text": b"no checkpoint"}[how])
    else:
        states = {
            "no state": {"outer": 1.0}, "other step": state(3.0, 3),
        }  # fmt: skip
        write_tensors(path, states[how])


def test_every_bit_of_the_frame_of_a_file_is_damage_or_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    content = path.read_bytes()
    # Headers and directory of the zip file, which its checksums leave out.
    rng = random.Random(0)
    names = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06")
    starts = [i for name in names for i in range(len(content)) if content.startswith(name, i)]
    for at in [min(rng.choice(starts) + rng.randrange(48), len(content) - 1) for _ in range(150)]:
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        )
        with suppress(CheckpointError):
            assert identical(checkpoint.latest(tmp_path), state(1.0, 1)), at


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ((), {"config": None}),
        ((), {"last": [1]}),
        ((), {"seconds": "2"}),
        (("engine",), {"spent": None}),
        (("engine",), {"outer_step": 2.0}),
        (("log",), {"bytes": "9"}),
    ],
    ids=str,
)
def test_a_state_of_another_kind_is_damage(
    tmp_path: Path, part: tuple[str, ...], change: dict[str, Any]
) -> None:
    save(tmp_path, 1)
    other: dict[str, Any] = state(2.0, 2)
    node = other
    for key in part:
        node = node[key]
    node |= change
    checkpoint.save(tmp_path, 2, other, keep=2)
    loaded = checkpoint.latest(tmp_path)
    assert loaded is not None
    assert loaded["engine"]["outer_step"] == 1


def test_what_is_not_of_an_outer_step_is_not_taken_for_a_journal(tmp_path: Path) -> None:
    for name in ("step_00000003", "step_x", "step_", "notes"):
        (tmp_path / "reverse" / name).mkdir(parents=True)
    (tmp_path / "reverse/step_00000004").write_text("a file")
    assert checkpoint.interrupted(tmp_path) == [(3, tmp_path / "reverse/step_00000003")]


def test_a_folder_in_the_place_of_a_checkpoint_is_moved_out_of_the_way(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step_00000009.pt" / "mine").mkdir(parents=True)
    save(tmp_path, 6)
    save(tmp_path, 9)
    assert [step for step, _ in steps(tmp_path)] == [6, 9]
    (moved,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (moved / "mine").is_dir()


def test_a_state_of_an_unknown_class_is_no_damage(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    write_tensors(path, {**state(2.0, 1), "last": {"__tag__": "unheard of"}})
    with pytest.raises(tree.UnknownStateError, match="import the problem"):
        checkpoint.latest(tmp_path)


def test_a_list_of_runs_reads_no_checkpoint_to_its_end(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        with zipfile.ZipFile(tmp_path / f"step_{step:08d}.pt", "w") as archive:
            archive.writestr("a", b"no state of a run")
    (tmp_path / "step_00000003.pt").write_bytes(b"no archive")
    assert checkpoint.newest_readable(tmp_path, 9, whole=False) == 2
    assert checkpoint.newest_readable(tmp_path, 1, whole=False) == 1
    assert checkpoint.newest_readable(tmp_path, 9) == 0


def test_when_all_are_damaged_the_newest_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step_00000002\.pt.*delete"):
        checkpoint.latest(tmp_path)


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "step_00000001.pt")
    with pytest.raises(CheckpointError, match="step_00000001"):
        checkpoint.latest(tmp_path)


def test_a_disk_that_fills_inside_torch_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(writing, "open", lambda *_, **__: full, raising=False)
        with pytest.raises(OSError, match="No space left"):
            write_tensors(tmp_path / "a.pt", state(1.0))
    assert os.listdir(tmp_path) == []
