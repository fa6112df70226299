"""Records of files, folders and data sets of the Hugging Face hub, each with its place.

Read are JSON (an array of objects, or an object that holds one), JSON lines, csv and tsv, each of
them also compressed with gzip or zstd, and parquet. JSON lines, parquet and the hub are streamed; a
JSON array or a table of csv is held in memory.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

COMPRESSED = ("", ".gz", ".zst")
TABLES = tuple(f".{kind}{end}" for kind in ("csv", "tsv") for end in COMPRESSED)
ENDINGS = (
    *(f".{kind}{end}" for kind in ("json", "jsonl") for end in COMPRESSED), *TABLES, ".parquet",
)  # fmt: skip
LISTS = ("data", "rows", "records", "examples", "instances", "items")
"""Keys under which a JSON object holds its records."""

MAX_CELL = 1 << 30
"""Most characters of a value in csv."""

NAMED_LIKE_A_FILE = re.compile(r"\.[A-Za-z]\w*$")
"""How a source's name ends that cannot be meant for the hub: .json, but not 2.5 or v1.5-mini."""

Item = tuple[int, int, Any]
"""Number of a record, from 1; the line it begins on, 0 where it has none; its value."""


class Record(NamedTuple):
    """One record of a source.

    Args:
        value: the object {column: value}; or a `ValueError` where its line is not JSON, its csv has
            another number of values than the header, or a column that was asked for is missing, so
            that a reader may list or leave out such records. Values of csv are texts; see
            `metaopt.data.row_texts.literal`.
        number: of the line in JSON lines, of the record elsewhere, from 1.
        place: where it stands, for messages: path:line (JSON lines and csv), "path, row 3" or
            "owner/name, train row 3".
        file: name of the file, or "owner/name (split)".
        part: name of the file without its ending, or of the hub's subset, folder or data set.
    """

    value: Any
    number: int
    place: str
    file: str
    part: str


def records(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
    split: str = "train",
    folder: str | None = None,
) -> Iterator[Record]:
    """Return the records of a source, in its order.

    Example:
        >>> for record in records("pairs.jsonl", columns={"chosen": "better"}):
        ...     print(record.place, record.value["chosen"])

    Args:
        source: a file that ends in one of `ENDINGS`, a folder of them (read in the order of their
            paths), or a data set id of the hub (owner/name).
        columns: {name to use: name in the source} of columns to rename.
        subset: configuration of the hub's data set; `None` is its default one.
        split: of the hub's data set.
        folder: in the hub's data set, as harmless-base in Anthropic/hh-rlhf.

    Raises:
        FileNotFoundError: there is no such source, or the folder has no file to read.
        ValueError: while reading, where a file cannot be read on: damaged, a Git LFS pointer or an
            HTML page in place of data.
    """
    path = Path(source).expanduser()
    if path.exists():
        every: Iterator[Record] = chain.from_iterable(map(_file, _files(path)))
    else:
        name = str(source)
        if _is_path(name):
            close = difflib.get_close_matches(path.name, _names(path.parent), n=1)
            hint = f"; did you mean {path.parent / close[0]}?" if close else "."
            raise FileNotFoundError(
                f"there is no file or folder {name}{hint} Give a file ({', '.join(ENDINGS)}), a "
                f"folder of them, or a data set of the hub as owner/name."
            )
        every = _hub(name, subset, split, folder)
    return (_renamed(record, columns) for record in every) if columns else every


def column_names(words: Iterable[str]) -> dict[str, str]:
    """Return {column: name in the source} of words COLUMN=NAME, as commands take them.

    Raises:
        ValueError: a word that is not of this form.
    """
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    for word, column, name in pairs:
        if not column or not name:
            raise ValueError(f"--columns needs COLUMN=NAME, as in question=task; got {word}.")
    return {column: name for _, column, name in pairs}


def grouped(mistakes: Iterable[tuple[str, str]], most: int = 10) -> str:
    """Return malformed rows (place, reason) as text: a line for each distinct reason.

    A line has the number of rows and the first three places. Reasons that differ only in the value
    that a row has ("...; got 3") are one, shown with the first value.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for place, reason in mistakes:
        groups.setdefault(re.split(r"; got |: line \d+ column ", reason)[0], []).append(
            (place, reason)
        )
    lines = []
    for rows in list(groups.values())[:most]:
        places = ", ".join(place for place, _ in rows[:3]) + (", ..." if len(rows) > 3 else "")
        count = f"{len(rows)} rows, " if len(rows) > 1 else ""
        lines.append(f"{count}{places}: {rows[0][1]}")
    if len(groups) > most:
        lines.append(f"and {len(groups) - most} more reasons")
    return "".join(f"\n  {line}" for line in lines)


def _is_path(name: str) -> bool:
    """Return whether a source's name cannot be meant for the hub (owner/name)."""
    return (
        name.count("/") != 1
        or name[0] in "./~"
        or name.endswith(("/", *ENDINGS))
        or NAMED_LIKE_A_FILE.search(name) is not None
        or Path(name).parent.exists()
    )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise ValueError(f"{path} must end in one of {', '.join(ENDINGS)}.")
        return [path]
    inside = (x for x in path.rglob("*") if not x.relative_to(path).as_posix().startswith("."))
    files = sorted(x for x in inside if x.is_file() and x.name.endswith(ENDINGS))
    if not files:
        raise FileNotFoundError(f"the folder {path} has no file {', '.join(ENDINGS)}.")
    return files


def _renamed(record: Record, columns: Mapping[str, str]) -> Record:
    if not isinstance(record.value, Mapping):
        return record
    missing = [name for name in columns.values() if name not in record.value]
    if missing:
        names = ", ".join(str(name)[:30] for name in list(record.value)[:10])
        return record._replace(
            value=ValueError(f"has no column {missing[0]!r}; columns are {names}")
        )
    others = {k: v for k, v in record.value.items() if k not in columns}
    return record._replace(value=others | {k: record.value[v] for k, v in columns.items()})


def _file(path: Path) -> Iterator[Record]:
    part = path.name.split(".")[0]
    _refuse_stand_in(path)
    try:
        for number, line, value in _reader(path)(path):
            place = f"{path}:{line}" if line else f"{path}, row {number}"
            yield Record(value, number, place, path.name, part)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: is not a complete gzip file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _reader(path: Path) -> Callable[[Path], Iterator[Item]]:
    if path.suffix == ".parquet":
        return _parquet
    return _table if path.name.endswith(TABLES) else _json


def _refuse_stand_in(path: Path) -> None:
    """Refuse what a failed download leaves in place of data, whatever the file's name."""
    with path.open("rb") as file:
        start = file.read(256).removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in its repository, or "
            f"download the file itself."
        )
    if start.startswith((b"<!doctype html", b"<html")):
        raise ValueError(
            f"{path} is an HTML page, not data: the download brought a web page. Get the file from "
            f"its raw address."
        )


def _open(path: Path) -> gzip.GzipFile | IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow  # it has zstd built in; Python has it from 3.14 on

        # A NativeFile has no readline; BufferedReader adds it.
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _text(path: Path) -> str:
    with _open(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: is not UTF-8: {error}") from None


def _json(path: Path) -> Iterator[Item]:
    """Yield the records of a file with JSON lines, an array, an object with one, or one object."""
    with _open(path) as file:
        start = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start != b"[" and (start != b"{" or ".jsonl" in path.name):
        yield from _lines(path)
        return
    try:
        whole = json.loads(_text(path))
    except json.JSONDecodeError as error:
        if start == b"{" and error.msg == "Extra data":  # JSON lines under the name .json
            yield from _lines(path)
            return
        raise ValueError(f"{path}:{error.lineno}: is not valid JSON: {error}") from None
    except RecursionError as error:
        raise ValueError(f"{path}: is not valid JSON: {error}") from None
    if isinstance(whole, dict):
        key = _list_key(whole)
        whole = [whole] if key is None else whole[key]
    for number, value in enumerate(whole, 1):
        yield number, 0, value


def _lines(path: Path) -> Iterator[Item]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                    yield number, number, json.loads(text.decode())
                except (ValueError, RecursionError) as error:
                    yield number, number, ValueError(f"is not valid JSON: {error}")


def _list_key(value: Mapping[str, Any]) -> str | None:
    """Return the key of the records in an object, or `None` where it is a record itself."""
    names = value if len(value) == 1 else LISTS
    lists = (name for name in names if isinstance(value.get(name), list))
    return next((k for k in lists if all(isinstance(x, dict) for x in value[k])), None)


def _table(path: Path) -> Iterator[Item]:
    """Yield the rows of csv or tsv under its header; every value is a text.

    A row counts from the line on which it begins, since a quoted text may hold line breaks.
    """
    csv.field_size_limit(MAX_CELL)  # a response may be longer than the default of 128 KiB
    delimiter = "\t" if ".tsv" in path.name else ","
    # `strict` refuses a quote that is never closed, which would swallow the rest of the file.
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number, line = 0, 1
    try:
        for cells in reader:
            if not header and cells:
                header = cells
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}:{line}: a header needs different names of columns")
            elif cells:
                number += 1
                if len(cells) == len(header):
                    yield number, line, dict(zip(header, cells, strict=True))
                else:
                    wrong = f"has {len(cells)} values under a header of {len(header)} columns"
                    yield number, line, ValueError(wrong)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: is not valid csv: {error}") from None


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, 0, row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: is not a parquet file: {error}") from error


def _hub(name: str, subset: str | None, split: str, folder: str | None) -> Iterator[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(name, subset, data_dir=folder, split=split)
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"the hub's data set {name} cannot be read ({type(error).__name__}). Check the name "
            f"and the network, or give a file or a folder."
        ) from error
    part = subset or folder or name.split("/")[1]
    for number, row in enumerate(rows, 1):
        yield Record(row, number, f"{name}, {split} row {number}", f"{name} ({split})", part)
