"""Rows of files, folders and data sets of the hub, each with the place that it stands at."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
SPACES = " \t\r\n"

Row = tuple[str, Any]
"""Where a row comes from (path:line), and the row, or the error that reading it met."""


def parts(source: str | Path, subset: str | None, split: str) -> list[tuple[str, Iterator[Row]]]:
    """Return the name and the rows of each part of a source; a folder has one for each file.

    Args:
        source: a file (.json with one array or one row a line, .jsonl, either with .gz, .parquet),
            a folder of them, or a data set id of the hub (owner/name).
        subset: of the hub's data set; `None` is its default one.
        split: of the hub's data set.

    Raises:
        FileNotFoundError: there is no such source, or the folder has no such file.
    """
    path = Path(source).expanduser()
    if path.exists():
        files = _files(path)
        return [(file.name.split(".")[0], _rows(file)) for file in files]
    name = str(source)
    if name.count("/") != 1 or name[0] in "./~" or name.endswith(FILES):
        raise FileNotFoundError(
            f"source={name} is neither a file, nor a folder, nor a data set of the hub "
            f"(owner/name)."
        )
    return [(name.split("/")[1], _hub(name, subset, split))]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(FILES):
            raise FileNotFoundError(f"{path} is none of {', '.join(FILES)}.")
        return [path]
    files = sorted(x for x in path.rglob("*") if x.is_file() and x.name.endswith(FILES))
    if not files:
        raise FileNotFoundError(f"the folder {path} has no file {', '.join(FILES)}.")
    return files


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with _opened(path) as file:
            start = file.read(1)
            while start and start in SPACES.encode():
                start = file.read(1)
        yield from _array(path) if start == b"[" else _lines(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield str(path), ValueError(f"is no whole gzip file: {error}")


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"{path}:{number}", ValueError(f"is no JSON: {error}")


def _array(path: Path) -> Iterator[Row]:
    """Yield the rows of one array; where it is broken, what follows cannot be told apart."""
    with _opened(path) as file:
        raw = file.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield f"{path}:{line}", ValueError(f"is no UTF-8, so nothing of the file is read: {error}")
        return
    decode = json.JSONDecoder().raw_decode
    at, line, counted = _skip(text, text.index("[") + 1), 1, 0
    closed = text[at : at + 1] == "]"
    while not closed:
        line += text.count("\n", counted, at)
        counted = at
        try:
            row, at = decode(text, at)
            yield f"{path}:{line}", row
            at = _skip(text, at)
            closed = text[at : at + 1] == "]"
            if not closed and text[at : at + 1] != ",":
                raise ValueError("a row of the array is followed by neither , nor ]")
            at = at if closed else _skip(text, at + 1)
        except (ValueError, RecursionError) as error:
            yield f"{path}:{line}", ValueError(f"is no JSON, and the rest is not read: {error}")
            return
    if text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        yield f"{path}:{line}", ValueError("the array is followed by more, which is not read")


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in SPACES:
        at += 1
    return at


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except pyarrow.ArrowInvalid as error:
        yield str(path), ValueError(f"is no parquet: {error}")


def _hub(name: str, subset: str | None, split: str) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(name, subset, split=split)
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"the hub's data set {name} cannot be read ({type(error).__name__}). Check the name "
            f"and the network, or give a file or a folder."
        ) from error
    return ((f"{name}, {split} row {number}", row) for number, row in enumerate(rows))
