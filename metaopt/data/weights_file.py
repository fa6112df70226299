"""What training examples count, as a parquet file that is joined to data by their content."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt.data.records import Record
from metaopt.files.writing import replacing

HASH_BYTES = 16
METADATA = b"metaopt"
"""Key of the schema's metadata under which ours stands, as JSON."""


class Example(NamedTuple):
    """What identifies a training example.

    Args:
        id: its name, unique among the examples.
        hash: of its content; see `content_hash`. Equal examples have equal hashes.
        file: where it comes from.
        row: its number there, from 1; in JSON lines, the line.
    """

    id: str
    hash: bytes
    file: str
    row: int


class ExampleWeights(NamedTuple):
    """The content of a file of weights, n examples.

    Args:
        examples: what identifies each.
        weight: what each counts, >= 0, of mean 1, (n,).
        score: what a rater says of each, (n,), NaN where none does.
        keep: which ones the run would keep, (n,).
        domain: the domain of each.
        columns: what `Example.hash` is over.
        origin: where the weights come from: run, commit, version of metaopt.
    """

    examples: Sequence[Example]
    weight: NDArray[np.float64]
    score: NDArray[np.float64]
    keep: NDArray[np.bool_]
    domain: Sequence[str]
    columns: Sequence[str]
    origin: Mapping[str, Any]


def content_hash(example: Mapping[str, Any], columns: Iterable[str]) -> bytes:
    """Return 16 bytes of SHA-256 over the JSON of named columns, with sorted keys.

    Data sets change how values are stored, not what they are: a column without a value is left
    out, 1, 1.0 and true are one number, and tuples and arrays are lists.

    Raises:
        ValueError: an example with none of the columns, or a value that JSON does not have.
    """
    wanted = {name: example[name] for name in columns if example.get(name) is not None}
    if not wanted:
        raise ValueError(
            f"an example has none of the columns to hash, {', '.join(columns)}; it has "
            f"{', '.join(map(str, example)) or 'none'}."
        )
    plain = {name: _plain(value, name) for name, value in wanted.items()}
    return sha256(json.dumps(plain, sort_keys=True).encode()).digest()[:HASH_BYTES]


def _plain(value: Any, column: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (Integral, np.bool_)):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return int(number) if number.is_integer() else number
    if isinstance(value, Mapping):
        return {str(k): _plain(v, column) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(x, column) for x in value]
    raise ValueError(
        f"column {column!r} holds a {type(value).__name__}, and hashes are over texts, numbers and "
        "lists and dicts of these. Name other columns."
    )


def identify(records: Iterable[Record], columns: Sequence[str]) -> tuple[Example, ...]:
    """Return what identifies each record of a source: file, row, and the hash of its columns.

    Raises:
        ValueError: a record that cannot be hashed, with its place.
    """
    examples, places = [], []
    for record in records:
        try:
            digest = content_hash(record.value, columns)
        except ValueError as error:
            raise ValueError(f"{record.place}: {error}") from None
        name = f"{record.file}:{record.number}"
        examples.append(Example(name, digest, record.file, record.number))
        places.append(record.place)
    return tuple(
        x._replace(id=name) for x, name in zip(examples, _unique(examples, places), strict=True)
    )


def _unique(examples: Sequence[Example], places: Sequence[str]) -> list[str]:
    """Return a name of each example: of files of one name in several folders with their paths.

    A row that is read more than once, such as by two domains, is numbered.
    """
    names = [x.id for x in examples]
    if len(set(names)) < len(names):
        names = list(places)
    met: Counter[str] = Counter()
    for i, name in enumerate(names):
        met[name] += 1
        if met[name] > 1:
            names[i] = f"{name} ({met[name]})"
    return names


def write_weights(path: Path, weights: ExampleWeights) -> None:
    """Write weights as parquet.

    Columns: row_id, hash, weight, score (null without a rater), keep, domain, file, row.

    Raises:
        ValueError: weights that are negative or not finite, or of another number than the examples.
    """
    import pyarrow as pa
    from pyarrow import parquet

    count = len(weights.examples)
    for name in ("weight", "score", "keep", "domain"):
        if len(getattr(weights, name)) != count:
            raise ValueError(f"{count} examples have {len(getattr(weights, name))} of {name}.")
    refuse_illegal(weights.weight, str(path))
    examples = weights.examples
    scores = [None if math.isnan(x) else float(x) for x in weights.score]
    columns = {
        "row_id": pa.array([x.id for x in examples], pa.string()),
        "hash": pa.array([x.hash for x in examples], pa.binary(HASH_BYTES)),
        "weight": pa.array(np.asarray(weights.weight, np.float64)),
        "score": pa.array(scores, pa.float64()),
        "keep": pa.array(np.asarray(weights.keep, bool)),
        "domain": pa.array(list(weights.domain), pa.string()),
        "file": pa.array([x.file for x in examples], pa.string()),
        "row": pa.array([x.row for x in examples], pa.int64()),
    }
    about = {"columns": list(weights.columns), **weights.origin}
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(about).encode()})
    with replacing(path) as file:
        parquet.write_table(table, file)


def read_example_weights(path: str | Path) -> ExampleWeights:
    """Return the weights of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or has weights that are negative or not finite.
    """
    import pyarrow
    from pyarrow import parquet

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file of weights {path}. A run writes weights.parquet into its folder "
            "where its task knows its examples; with figures=false it does not."
        )
    names = ("row_id", "hash", "weight", "score", "keep", "domain", "file", "row")
    try:
        table = parquet.read_table(path)
        metadata = table.schema.metadata or {}
        about = json.loads(metadata[METADATA])
        values = {name: table.column(name).to_pylist() for name in names}
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no file of weights as a run writes it ({type(error).__name__}: {error})."
        ) from error
    weight = np.array(values["weight"], np.float64)
    refuse_illegal(weight, str(path))
    rows = (values[name] for name in ("row_id", "hash", "file", "row"))
    return ExampleWeights(
        [Example(*row) for row in zip(*rows, strict=True)],
        weight,
        np.array([math.nan if x is None else x for x in values["score"]], np.float64),
        np.array(values["keep"], bool),
        values["domain"],
        about.pop("columns"),
        about,
    )


def refuse_illegal(weights: ArrayLike, place: str) -> None:
    """Raise a `ValueError` where a weight is negative or not finite."""
    values = np.asarray(weights, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise ValueError(
            f"{place}: weights must be finite and >= 0; {len(wrong)} of {len(values)} are not, the "
            f"first is {values[wrong[0]]:g} at position {wrong[0]}."
        )
