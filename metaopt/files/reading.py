"""Reading what a run has written: right, or named as damaged with what to do about it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from metaopt.files import sums
from metaopt.files.errors import DamagedFileError
from metaopt.files.numbers import is_number

DEEPEST = 64
MOST = 1_000_000
"""A config is nested less deeply, and has fewer entries, than this."""

STEP = re.compile(r"step_(\d{8,})\.pt")
"""Names of files of an outer step."""


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Args:
        path: the file.
        advice: what to do where it is damaged.

    Raises:
        FileNotFoundError: it is missing.
        DamagedFileError: it cannot be read, holds no mapping, or is not what was written.
    """
    return _mapping(path, json.loads, "JSON", advice)


def read_yaml(path: Path, advice: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; see `read_json`."""
    return _mapping(path, yaml.safe_load, "YAML", advice)


def _mapping(path: Path, parse: Callable[[str], Any], form: str, advice: str) -> dict[str, Any]:
    content = read_bytes(path, advice)
    try:
        value = parse(content.decode("utf-8"))
        _check_size(value)
    except Exception as error:  # yaml lets errors of any kind out, such as a KeyError for !!bool x
        raise damaged(path, f"it is not valid {form}: {_short(error)}", advice) from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        what = "is empty" if not content.strip() else f"holds {type(value).__name__}, no mapping"
        raise damaged(path, f"it {what}", advice)
    return value


def read_bytes(path: Path, advice: str) -> bytes:
    """Return the content of a file, compared with the hash that `SHA256SUMS` has of it.

    Raises:
        FileNotFoundError: it is missing.
        DamagedFileError: it cannot be read, or is not what was written.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise damaged(path, "it is not a regular file", advice)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(path, f"it cannot be read ({error.strerror})", advice) from error
    if not sums.matches(path, content):
        raise damaged(path, f"it does not match its hash in {sums.NAME}", advice)
    return content


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl; a last line that a kill has cut is left out.

    Raises:
        FileNotFoundError: it is missing.
        DamagedFileError: a line is not a record; names it.
    """
    return [record for _, record in numbered(read_bytes(path, LOG), path)]


LOG = "Restore it from a copy, or delete it: the rest of the run does not depend on it."


def numbered(content: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines of a metrics.jsonl with their records; see `read_records`.

    None is of an earlier outer step than the one before.
    """
    lines = content.split(b"\n")[:-1]  # after the last one there is nothing, or a line cut short
    records: list[tuple[bytes, dict[str, Any]]] = []
    last = 0
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            valid = type(record["outer_step"]) is int and _is_record(record)
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
            valid = False
        if not valid:
            raise damaged(path, f"line {number} is not a record of numbers", LOG)
        if record["outer_step"] < last:
            why = (
                f"line {number} is of outer step {record['outer_step']}, and steps count up from 0"
            )
            raise damaged(path, why, LOG)
        last = record["outer_step"]
        records.append((line + b"\n", record))
    return records


def damaged(path: Path, why: str, advice: str) -> DamagedFileError:
    """Return the error that names a file, what is wrong with it, and what to do."""
    return DamagedFileError(f"{path} is damaged: {why}. {advice}")


def _is_record(record: dict[str, Any]) -> bool:
    replicates = record.pop("replicates", {})
    each = [*record.values(), *(value for values in replicates.values() for value in values)]
    if replicates:
        record["replicates"] = replicates
    return all(value is None or is_number(value) for value in each)


def _check_size(value: Any) -> None:
    """Refuse what takes for ever to walk: deep nesting, and aliases of YAML that multiply."""
    count, level = 0, [value]
    for _ in range(DEEPEST):
        nodes = [x for x in level if isinstance(x, (dict, list))]
        if not nodes:
            return
        count += sum(map(len, nodes))
        if count > MOST:
            raise ValueError(f"more than {MOST:,} entries")
        level = [x for node in nodes for x in (node.values() if isinstance(node, dict) else node)]
    raise ValueError(f"nested more than {DEEPEST} levels deep")


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]} ..."


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Return the (step, file) pairs of a folder of checkpoints, the oldest first.

    Empty where the folder is absent.

    Raises:
        DamagedFileError: the folder cannot be read.
    """
    try:
        files = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        advice = "Make it readable, or restore it from a copy."
        raise damaged(folder, f"it cannot be read ({error.strerror})", advice) from error
    matched = ((STEP.fullmatch(path.name), path) for path in files)
    return sorted((int(match[1]), path) for match, path in matched if match)
