"""The records of one file: JSON, JSON lines, csv, tsv and parquet, also compressed.

A file is read rightly or refused with its name: what a failed download leaves in its place, another
encoding than UTF-8, and another format than its name says are looked for in its first bytes.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from metaopt.data.pointers import START, refuse_pointer, refuse_pointing

LINES = (".jsonl", ".ndjson")
KINDS = (".json", *LINES, ".csv", ".tsv")
COMPRESSED = (".gz", ".zst")
ENDINGS = (*(f"{kind}{end}" for kind in KINDS for end in ("", *COMPRESSED)), ".parquet")
"""How the names of files end that are read, in lower or upper case."""

LISTS = ("data", "rows", "records", "examples", "instances", "items")
"""Keys under which a JSON object holds its records."""

MAX_CELL = 1 << 30
"""Most characters of a value in csv."""

SEPARATORS = ",;\t|"
"""What may separate the values of csv, which some programs write for another country or purpose."""

Item = tuple[int, int, Any]
"""Number of a record, from 1; the line it begins on, 0 where it has none; its value."""

SIGNATURES = {
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: let its name end in .zst",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "a parquet file: let its name end in .parquet",
    codecs.BOM_UTF16_LE: "text in UTF-16 or UTF-32: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
}
"""First bytes of a file of text that is none, and what to do."""


def is_readable(path: Path) -> bool:
    """Return whether a file's name ends in one of `ENDINGS`."""
    return path.name.lower().endswith(ENDINGS)


def stem(name: str) -> str:
    """Return a file's name without one of `ENDINGS`; dots within it are part of it."""
    end = next((end for end in sorted(ENDINGS, key=len)[::-1] if name.lower().endswith(end)), "")
    return name[: len(name) - len(end)]


def is_table(name: str) -> bool:
    """Return whether a file of this name is csv or tsv, in which every value is a text."""
    kind = name.lower().removesuffix(".gz").removesuffix(".zst")
    return kind.endswith((".csv", ".tsv"))


def items(path: Path) -> Iterator[Item]:
    """Yield the records of a file; see `metaopt.data.records.Record` for their values.

    Raises:
        ValueError: while reading, where the file cannot be read on; names it.
    """
    name = path.name.lower()
    number = 0
    try:
        _refuse_stand_in(path)
        read = _parquet if name.endswith(".parquet") else _json
        for number, line, value in (_table if is_table(name) else read)(path):
            yield number, line, value
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: is not a complete gzip file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not number:
        raise ValueError(f"{path} holds no record. Take it away, or write it again.")


def _refuse_stand_in(path: Path) -> None:
    """Refuse what is something else than the file's name says."""
    refuse_pointer(path)
    if path.suffix.lower() == ".parquet":
        return
    with _open(path) as text:
        start = text.read(START)
    refuse_pointing(path, start)  # of a file that was compressed before its data had come
    for signature, what in SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(f"{path} is {what}.")
    if b"\0" in start:
        raise ValueError(f"{path} is not UTF-8 text: it holds zero bytes. Save it as UTF-8.")


def _open(path: Path) -> gzip.GzipFile | IO[bytes]:
    end = path.suffix.lower()
    if end == ".gz":
        return gzip.open(path, "rb")
    if end == ".zst":
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
    """Yield the records of a file with JSON lines, an array, columns, or one object.

    An object may hold an array of records under a key.
    """
    with _open(path) as file:
        start = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    lines = any(kind in path.name.lower() for kind in LINES)
    if start != b"[" and (start != b"{" or lines):
        yield from _lines(path)
        return
    try:
        whole = json.loads(_text(path), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if start == b"{" and error.msg == "Extra data":  # JSON lines under the name .json
            yield from _lines(path)
            return
        raise ValueError(f"{path}:{error.lineno}: is not valid JSON: {error}") from None
    except (RecursionError, DuplicateKey) as error:
        raise ValueError(f"{path}: is not valid JSON: {error}") from None
    if isinstance(whole, dict):
        key = _list_key(whole)
        whole = _of_columns(path, whole) if key is None else whole[key]
    for number, value in enumerate(whole, 1):
        yield number, 0, value


class DuplicateKey(ValueError):
    """An object of JSON has two values of one name."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKey(
            f"an object names {next(n for n in names if names.count(n) > 1)!r} twice"
        )
    return value


def _lines(path: Path) -> Iterator[Item]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                    value = json.loads(text.decode(), object_pairs_hook=_object)
                except UnicodeDecodeError as error:
                    value = ValueError(f"is not UTF-8: {error}")
                except (ValueError, RecursionError) as error:
                    value = ValueError(f"is not valid JSON: {error}")
                yield number, number, value


def _list_key(value: Mapping[str, Any]) -> str | None:
    """Return the key of the records in an object, or `None` where it is a record itself."""
    names = value if len(value) == 1 else LISTS
    lists = (name for name in names if isinstance(value.get(name), list))
    return next((k for k in lists if all(isinstance(x, dict) for x in value[k])), None)


def _of_columns(path: Path, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of an object of columns, or the object where it is a record itself.

    Columns are lists of texts, numbers, true, false and null; a record has lists of other things,
    or not only lists.

    Raises:
        ValueError: the columns have different lengths, or are objects, as pandas writes them.
    """
    columns = list(value.values())
    if len(columns) > 1 and all(isinstance(x, dict) for x in columns):
        raise ValueError(
            f"{path} holds an object of objects ({_names(value)}), and an array of records is "
            f"needed; with pandas: to_json(path, orient='records', lines=True)."
        )
    plain = all(isinstance(x, list) and not any(isinstance(y, (list, dict)) for y in x)
                for x in columns)  # fmt: skip
    if not columns or not plain:
        return [value]
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise ValueError(f"{path} holds columns of different lengths: {listed}.")
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _names(names: Sequence[str] | Mapping[str, Any], most: int = 10) -> str:
    return ", ".join(str(name)[:30] for name in list(names)[:most])


def _table(path: Path) -> Iterator[Item]:
    """Yield the rows of csv or tsv under its header; every value is a text.

    A row counts from the line on which it begins, since a quoted text may hold line breaks. What
    separates the values is looked for in the header: the usual mark, or the most frequent one.
    """
    csv.field_size_limit(MAX_CELL)  # a response may be longer than the default of 128 KiB
    text = _text(path)
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    usual = "\t" if ".tsv" in path.name.lower() else ","
    mark = max(dict.fromkeys((usual, *SEPARATORS)), key=first.count)
    # `strict` refuses a quote that is never closed, which would swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    header: list[str] = []
    number, line = 0, 1
    try:
        for cells in reader:
            if not header and cells:
                header = [name.strip() for name in cells]
                _refuse_twice(header, f"{path}:{line}: a header")
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


def _refuse_twice(names: Sequence[str], what: str) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{what} needs different names of columns; {twice[0]!r} is there twice")


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            _refuse_twice(file.schema_arrow.names, f"{path}: its schema")
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, 0, row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: is not a parquet file: {error}") from error
