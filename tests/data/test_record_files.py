"""Files as other programs write them: each is read rightly, or refused with its name and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from metaopt.data.records import records

ROWS = [{"question": "a, b", "label": 1}, {"question": "c", "label": 0}]
TEXTS = [{"question": "a", "label": "1"}, {"question": "c", "label": "0"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "question,label\na,1\nc,0\n"


def values(path: Path, data: str | bytes) -> list[Any]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [record.value for record in records(path)]


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("A.JSON", json.dumps(ROWS), ROWS),
        ("A.JSONL", LINES, ROWS),
        ("A.Jsonl.GZ", gzip.compress(LINES.encode(), mtime=0), ROWS),
        ("a.ndjson", LINES, ROWS),
        ("A.CSV", CSV, TEXTS),
        ("a.csv", "\ufeff" + CSV.replace(",", ";"), TEXTS),
        ("a.csv", CSV.replace(",", "\t"), TEXTS),
        ("a.csv", CSV.replace(",", "|"), TEXTS),
        ("a.tsv", CSV, TEXTS),
        ("a.csv", "question;label\na, b;1\n", [{"question": "a, b", "label": "1"}]),
        ("a.csv", "question, label\na,1\n", TEXTS[:1]),
        ("a.csv", "question\na;1\n", [{"question": "a;1"}]),
        ("a.json", json.dumps({"question": ["a, b", "c"], "label": [1, 0]}), ROWS),
        ("a.json", json.dumps({"question": ["a"]}), [{"question": "a"}]),
        ("a.json", '{"question": "a", "steps": ["b"]}', [{"question": "a", "steps": ["b"]}]),
        ("a.jsonl", json.dumps({"question": ["a"]}) + "\n", [{"question": ["a"]}]),
    ],
)  # fmt: skip
def test_read(tmp_path: Path, name: str, data: str | bytes, rows: list[Any]) -> None:
    assert values(tmp_path / name, data) == rows


EMPTY = r" holds no record\. Take it away"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", "", EMPTY),
        ("a.json", " \n", EMPTY),
        ("a.json", "[]", EMPTY),
        ("a.json", '{"data": []}', EMPTY),
        ("a.csv", "", EMPTY),
        ("a.csv", "question,label\n", EMPTY),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), EMPTY),
        ("a.json", '{"question": ["a", "b"], "label": [1]}', "lengths: question 2, label 1"),
        ("a.json", '{"question": {"0": "a"}, "label": {"0": 1}}', "orient='records', lines=True"),
        ("a.jsonl", LINES.encode("utf-16"), " is text in UTF-16 or UTF-32: save it as UTF-8"),
        ("a.csv", CSV.encode("utf-16-be"), " is not UTF-8 text: it holds zero bytes"),
        ("a.csv", "question,label\na,caf\u00e9\n".encode("latin-1"), ":2: is not UTF-8"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), r" is compressed by gzip: let its"),
        ("a.json", b"PAR1", " is a parquet file: let its name end in"),
        ("a.json", b"PK\x03\x04", " is a zip archive: unpack it"),
        ("a.csv", "label,label\n1,2\n", ":1: a header needs .*'label' is there twice"),
        ("a.json", '[{"a": 1, "a": 2}]', ": is not valid JSON: an object names 'a' twice"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"/{name}{message}|/{name} .*{message}"):
        values(tmp_path / name, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LINES + '{"question": "d", "la', "is not valid JSON: Unterminated string"),
        (LINES.encode() + b'{"question": "\xe9"}\n', "is not UTF-8"),
        (LINES + '{"a": 1, "a": 2}\n', "is not valid JSON: an object names 'a' twice"),
    ],
)
def test_a_line_of_json_lines_is_refused_alone(
    tmp_path: Path, data: str | bytes, message: str
) -> None:
    *read, wrong = values(tmp_path / "a.jsonl", data)
    assert read == ROWS
    assert str(wrong).startswith(message)


def test_parquet_with_nested_columns_and_with_a_column_twice(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    row = {"question": "a", "steps": [{"text": "b", "rating": {"value": 1}}]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "A.PARQUET")
    assert [record.value for record in records(tmp_path / "A.PARQUET")] == [row]
    twice = pyarrow.table([["a"], ["b"]], names=["question", "question"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'question' is there twice"):
        list(records(tmp_path / "a.parquet"))
