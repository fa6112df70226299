"""Records of files, folders and data sets of the Hugging Face hub, each with its place.

Read are JSON (an array of objects, an object that holds one, or one of columns), JSON lines, csv
and tsv, each of them also compressed with gzip or zstd, and parquet. JSON lines, parquet and the
hub are streamed; a JSON array or a table of csv is held in memory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.data.record_files import ENDINGS, is_readable, items, stem

NAMED_LIKE_A_FILE = re.compile(r"\.[A-Za-z]\w*$")
"""How a source's name ends that cannot be meant for the hub: .json, but not 2.5 or v1.5-mini."""


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
        source: a file that ends in one of `metaopt.data.record_files.ENDINGS`, a folder of them
            (read in the order of their paths), or a data set id of the hub (owner/name).
        columns: {name to use: name in the source} of columns to rename.
        subset: configuration of the hub's data set; `None` is its default one.
        split: of the hub's data set.
        folder: in the hub's data set, as harmless-base in Anthropic/hh-rlhf.

    Raises:
        FileNotFoundError: there is no such source, or the folder has no file to read.
        ValueError: while reading, where a file cannot be read on: damaged, empty, or something else
            than its name says.
    """
    path = Path(source).expanduser()
    if path.exists() or path.is_symlink():
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


def rows_as_records(
    rows: Iterable[Mapping[str, Any]], name: str, columns: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """Return the rows of a data set in memory, such as a `datasets.Dataset`, as records.

    Args:
        rows: objects {column: value}.
        name: for messages, and the records' file and part.
        columns: see `records`.
    """
    for number, row in enumerate(rows, 1):
        yield _renamed(Record(row, number, f"{name}, row {number}", name, name), columns or {})


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
        or name.lower().endswith(("/", *ENDINGS))
        or NAMED_LIKE_A_FILE.search(name) is not None
        or Path(name).parent.exists()
    )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _files(path: Path) -> list[Path]:
    if path.is_file() or not path.exists():
        if not is_readable(path):
            raise ValueError(f"{path} must end in one of {', '.join(ENDINGS)}.")
        return [path]
    inside = (x for x in path.rglob("*") if not x.relative_to(path).as_posix().startswith("."))
    # A link to what is not there is no file, and must not be left out without a word.
    files = sorted(x for x in inside if is_readable(x) and (x.is_file() or not x.exists()))
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
    part = stem(path.name)
    for number, line, value in items(path):
        place = f"{path}:{line}" if line else f"{path}, row {number}"
        yield Record(value, number, place, path.name, part)


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
