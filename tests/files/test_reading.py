"""Files are read, or named as damaged with what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from metaopt.files import sums
from metaopt.files.errors import DamagedFileError
from metaopt.files.reading import read_json, read_records, read_yaml
from metaopt.files.tensors import read_tensors

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"seed: [1, 2", "it is not valid YAML"),
        (b"- 1\n- 2\n", "holds list, no mapping"),
        (b"1: 2\n", "no mapping"),
        (b"seed: \xff\n", "utf-8"),
        (b"seed: \x00\n", "it is not valid YAML"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"a: " + b"[" * 80 + b"]" * 80, "nested more than 64 levels deep"),
        (BOMB.encode(), "more than 1,000,000 entries"),
        (b"a: !!bool maybe", "it is not valid YAML"),
        (b"a: !!timestamp x", "it is not valid YAML"),
        (b"a: " + b"9" * 5000, "it is not valid YAML"),
        (b"a: !!python/object/apply:os.system [true]", "it is not valid YAML"),
    ],
    ids=lambda x: str(x)[:12],
)
def test_damaged_yaml_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=why) as caught:
        read_yaml(path, "Restore it.")
    assert str(caught.value).startswith(f"{path} is damaged: it ")
    assert str(caught.value).endswith(" Restore it.")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "holds list"),
        (b"{" * 99_999, "not valid JSON"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
    ids=lambda x: str(x)[:12],
)
def test_damaged_json_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=why):
        read_json(path, "Restore it.")


@pytest.mark.parametrize(
    "line",
    [
        b'{"outer_step": 2, "a\xff": 1.0}', b"", b"[1]", b"3", b'{"a": 1.0}',
        b'{"outer_step": 2.0}',
        b'{"outer_step": 2, "a": "x"}', b'{"outer_step": 2} {"outer_step": 3}', b"[" * 5000,
    ],
)  # fmt: skip
def test_a_damaged_line_of_the_log_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"outer_step": 1}\n' + line + b'\n{"outer_step": 4}\n')
    with pytest.raises(DamagedFileError, match=r"jsonl is damaged: line 2 .* delete it"):
        read_records(path)


@pytest.mark.parametrize("steps", [[1, 2, 1, 2], [-1]], ids=str)
def test_records_of_steps_that_go_back_are_named(tmp_path: Path, steps: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"outer_step": {step}}}\n' for step in steps))
    with pytest.raises(DamagedFileError, match=r"line \d is of outer step -?\d, and steps"):
        read_records(path)


def test_a_last_line_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"outer_step": 1, "a": null}\n{"outer_step": 2, "a')
    assert read_records(path) == [{"outer_step": 1, "a": None}]


def test_a_number_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"a": 1}))
    sums.write(tmp_path, [path], {"b.json": "{}"})
    assert read_json(path, "") == {"a": 1}
    (tmp_path / "b.json").write_text("{}")
    assert read_json(tmp_path / "b.json", "") == {}
    path.write_text(json.dumps({"a": 3}))
    with pytest.raises(DamagedFileError, match="does not match its hash in SHA256SUMS"):
        read_json(path, "")
    (tmp_path / sums.NAME).write_bytes(b"\xff")
    with pytest.raises(DamagedFileError, match="SHA256SUMS is damaged"):
        read_json(path, "")


def test_a_pipe_or_a_folder_is_no_file_to_read(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(DamagedFileError, match=f"{path.name} .* not a regular file. Delete"):
            read_json(path, "Delete it.")
        with pytest.raises(DamagedFileError, match=f"{path.name} .* not a regular file"):
            read_tensors(path)
    (tmp_path / sums.NAME).touch()
    with pytest.raises(DamagedFileError, match="is not lines of a hash and a name"):
        sums.read(tmp_path)
    (tmp_path / sums.NAME).unlink()
    os.mkfifo(tmp_path / sums.NAME)
    with pytest.raises(DamagedFileError, match=r"cannot be read \(not a regular file\)"):
        sums.read(tmp_path)
