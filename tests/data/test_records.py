"""The reader of records: formats, the places of records, and what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from metaopt.data.records import Record, grouped, records

ROWS = [{"text": f"line {i}\u2028", "n": i} for i in range(3)]


def write(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        import pyarrow

        raw = pyarrow.compress(raw, codec="zstd", asbytes=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def lines(rows: list[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", lines(), [1, 2, 3]),
        ("a.json", lines(), [1, 2, 3]),
        ("a.jsonl", "\ufeff" + lines().replace("\n", "\n\n"), [1, 3, 5]),
        ("a.json", json.dumps(ROWS), []),
        ("a.json", "\ufeff" + json.dumps(ROWS, indent=1), []),
        ("a.jsonl", json.dumps(ROWS), []),
        ("a.json", json.dumps({"version": [1], "data": ROWS, "n": 3}), []),
        ("a.json", json.dumps({"version": {"x": []}, "rows": ROWS}, indent=1), []),
        ("a.json", json.dumps({"problems": ROWS}), []),
    ],
)
def test_every_kind_of_json(
    tmp_path: Path, name: str, text: str, places: list[int], packed: str
) -> None:
    """`places` are lines; records of an array are counted."""
    path = write(tmp_path / (name + packed), text)
    result = list(records(path))
    assert [record.value for record in result] == ROWS
    expected = [f"{path}:{line}" for line in places] or [f"{path}, row {i}" for i in (1, 2, 3)]
    assert [record.place for record in result] == expected
    assert {(record.file, record.part) for record in result} == {(name + packed, "a")}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("kind", "mark"), [("csv", ","), ("tsv", "\t")])
def test_csv_has_texts_and_the_lines_they_begin_on(
    tmp_path: Path, kind: str, mark: str, packed: str
) -> None:
    text = '\ufefftext,n\r\n"two\nlines, ""quoted""",1\r\n\r\n007,\r\n'
    path = write(tmp_path / f"a.{kind}{packed}", text.replace(",", mark))
    result = list(records(path))
    assert [record.value for record in result] == [
        {"text": f'two\nlines{mark} "quoted"', "n": "1"},
        {"text": "007", "n": ""},
    ]
    assert [record[1:] for record in result] == [
        (1, f"{path}:2", path.name, "a"),
        (2, f"{path}:5", path.name, "a"),
    ]


def test_a_row_of_csv_with_another_number_of_values_is_a_record_with_the_error(
    tmp_path: Path,
) -> None:
    short, good = records(write(tmp_path / "a.csv", "text,n\na\nb,2\n"))
    assert str(short.value) == "has 1 values under a header of 2 columns"
    assert good.value == {"text": "b", "n": "2"}


def test_csv_may_hold_long_texts(tmp_path: Path) -> None:
    (record,) = records(write(tmp_path / "a.csv", f"text\n{'x' * 200_000}\n"))
    assert len(record.value["text"]) == 200_000


def test_dots_belong_to_the_name_of_a_file(tmp_path: Path) -> None:
    for name in ("gpt3.5.jsonl", "gpt3.7.jsonl", "v1.JSON"):
        write(tmp_path / name, json.dumps(ROWS[0]))
    assert [record.part for record in records(tmp_path)] == ["gpt3.5", "gpt3.7", "v1"]


def test_parquet_and_a_folder_of_files(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    write(tmp_path / "b/deep.json", json.dumps(ROWS[:1]))
    write(tmp_path / ".git/c.json", "not read")
    write(tmp_path / "readme.md", "not read")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    result = list(records(tmp_path))
    assert [record.value for record in result] == ROWS + ROWS[:1]
    assert [record.part for record in result] == ["a", "a", "a", "deep"]
    assert result[2].place == f"{tmp_path / 'a.parquet'}, row 3"


def test_a_record_may_hold_lists_of_objects(tmp_path: Path) -> None:
    """One object in a file called .json is a record, unless a key says that it holds records."""
    row = {"prompt": [{"role": "user"}], "chosen": [{"role": "assistant"}]}
    for text in (lines([row]), json.dumps(row, indent=1)):
        assert [record.value for record in records(write(tmp_path / "a.json", text))] == [row]


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([{"a": 1, "b": 2, "c": 3}, {"b": 2}]))
    first, second = (record.value for record in records(path, columns={"b": "a"}))
    assert (first["b"], first["c"]) == (1, 3)
    assert str(second) == "has no column 'a'; columns are b"


def test_a_line_that_is_not_json_is_a_record_with_the_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"n": 1}\n{\n"\xff"\n{"n": 2}\n')
    result = list(records(path))
    assert [record.number for record in result] == [1, 2, 3, 4]
    assert [str(record.value)[:12] for record in result[1:3]] == ["is not valid", "is not UTF-8"]
    assert result[3] == Record({"n": 2}, 4, f"{path}:4", "a.jsonl", "a")


PAGE = "\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", "[{},\n{", r"a\.json:2: is not valid JSON"),
        ("a.json", '[{}\n{"n": 1}]', r"a\.json:2: is not valid JSON.*',' delimiter"),
        ("a.json", "[{},\n]", r"a\.json:2: is not valid JSON"),
        ("a.json", "[{}]\nx", r"a\.json:2: is not valid JSON: Extra data"),
        ("a.json", b'[{},\n"\xff"]', r"a\.json:2: is not UTF-8"),
        ("a.json", '{\n"data": [{}', r"a\.json:2: is not valid JSON"),
        ("a.jsonl", POINTER, r"a\.jsonl is a Git LFS pointer.*git lfs pull"),
        ("a.parquet", POINTER, r"a\.parquet is a Git LFS pointer"),
        ("a.jsonl.gz", POINTER, r"a\.jsonl\.gz is a Git LFS pointer"),
        (
            "a.csv",
            "/annex/objects/SHA256E-s3--0.csv\n",
            r"a\.csv is a git-annex pointer",
        ),
        ("a.json", PAGE, r"a\.json is an HTML page, not data"),
        ("a.parquet", PAGE, r"a\.parquet is an HTML page"),
        ("a.parquet", "PAR1", r"a\.parquet: is not a parquet file"),
        ("a.txt", "text,n", r"a\.txt must end in one of \.json, \.json\.gz.*\.csv"),
        ("a.csv", 'text,n\na,1\n"b,2\nc,3\n', r"a\.csv:3: is not valid csv: unexpected end"),
        ("a.csv", "text,text\na,b\n", r"a\.csv:1: a header needs different names"),
        ("a.csv", b"text\n\n\xff", r"a\.csv:3: is not UTF-8"),
        ("a.csv", PAGE, r"a\.csv is an HTML page"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, data: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        list(records(write(tmp_path / name, data)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("../.git/annex/objects/K/K", r"a\.jsonl is a git-annex pointer"),
        ("gone", r"a\.jsonl is a symbolic link to gone, which is not there"),
    ],
)
@pytest.mark.parametrize("folder", [True, False])
def test_a_link_to_what_is_not_there_is_not_left_out(
    tmp_path: Path, target: str, message: str, folder: bool
) -> None:
    write(tmp_path / "b.jsonl", lines())
    (tmp_path / "a.jsonl").symlink_to(target)
    with pytest.raises(ValueError, match=message):
        list(records(tmp_path if folder else tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"plain text"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, damage: Any) -> None:
    path = write(tmp_path / name, lines() * 100)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name}: (is not a complete gzip|cannot be read)"):
        list(records(path))


@pytest.mark.parametrize("source", ["missing.jsonl", "a/missing.json.zst", "./a/b", "~/b", "a"])
def test_a_missing_source_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder "):
        records(source)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no file \.json"):
        records(tmp_path)


def test_a_data_set_as_the_hub_holds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` reads a folder owner/name as it reads a repository of the hub."""
    import datasets

    data = write(tmp_path / "hub/part/test.jsonl", lines()).parent
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *a, **k: load(str(data.parent), **k))
    result = list(records("owner/name", split="test", folder="part"))
    assert [record.value for record in result] == ROWS
    assert result[1][1:] == (2, "owner/name, test row 2", "owner/name (test)", "part")


@pytest.mark.parametrize("name", ["step/", "mine/chains.json", "mine/chains.txt", "here/chains"])
def test_what_looks_like_a_path_is_not_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "chain").touch()
    monkeypatch.setattr("metaopt.data.records._hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder {name}") as error:
        records(name)
    assert ("did you mean here/chain?" in str(error.value)) == name.startswith("here")


@pytest.mark.parametrize("name", ["owner/name", "owner/model-v1.5", "owner/Qwen2.5-Math"])
def test_other_names_are_data_sets_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.data.records._hub", lambda *_: iter(()))
    assert list(records(name)) == []


def test_mistakes_are_grouped_by_reason() -> None:
    rows = [(f"a:{i}", f"must be 1; got {i}") for i in range(5)] + [("b:1", "is empty")]
    assert grouped(rows) == "\n  5 rows, a:0, a:1, a:2, ...: must be 1; got 0\n  b:1: is empty"
    many = [(f"a:{i}", f"reason {i}") for i in range(12)]
    assert grouped(many).splitlines()[-2:] == ["  a:9: reason 9", "  and 2 more reasons"]
