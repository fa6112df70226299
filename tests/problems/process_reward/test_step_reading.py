"""Files, folders and hub data sets of chains, and what is malformed in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from metaopt.problems.process_reward.data.formats import Renaming, read, write

GOOD = {"prompt": "p", "completions": ["a"], "labels": [True]}
BAD = {"prompt": "p", "completions": ["a"], "labels": []}


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def test_every_kind_of_file_gives_the_same_chains(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [GOOD, {**GOOD, "completions": ["b", "c\u2028d"], "labels": [False, True]}]
    (tmp_path / "a.json").write_text(f"\n {json.dumps(rows, indent=2)}\n")
    (tmp_path / "a.jsonl").write_text(f"\n{lines(*rows)}", encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines(*rows).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.md").write_text("no data")
    parts = [read(path) for path in sorted(tmp_path.glob("a.*"))]
    assert len(parts) == 5
    assert all(chains == parts[0] for chains in parts)
    assert [c.steps for c in parts[0]] == [("a",), ("b", "c\u2028d")]
    assert read(tmp_path) == parts[0] * 5
    assert {chain.domain for chain in parts[0]} == {"a"}


def test_a_folder_may_mix_formats(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.jsonl").write_text(lines(GOOD))
    other = {"id": "1", "generator": "", "problem": "p", "steps": ["s"], "label": 0}
    (tmp_path / "y.json").write_text(json.dumps([other]))
    assert [(c.domain, c.labels) for c in read(tmp_path)] == [("x", (1.0,)), ("y", (0.0,))]


def test_prefixes_of_a_chain_are_joined_across_files(tmp_path: Path) -> None:
    row = {"id": 1, "input": "q", "dataset": "d", "accuracy": 0.5}
    (tmp_path / "a.jsonl").write_text(lines({**row, "sid": 2, "add": "one two"}))
    (tmp_path / "b.jsonl").write_text(lines({**row, "sid": 1, "add": "one "}))
    (chain,) = read(tmp_path)
    assert chain.steps == ("one", "two")


def test_malformed_rows_are_listed_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD, BAD, "", "{", [1], {"x": 1}, GOOD).encode() + b'"\xff"\n')
    with pytest.raises(ValueError, match=r"malformed rows of .*a\.jsonl, 5 of 7:") as error:
        read(path)
    says = str(error.value).splitlines()
    for line, reason in [
        (2, "'labels' must be one per completion"),
        (4, "is not valid JSON"),
        (5, "is not an object"),
        (6, "its columns are those of no format: x"),
        (8, "is not UTF-8: 'utf-8' codec"),
    ]:
        assert sum(x.startswith(f"  {path}:{line}: {reason}") for x in says) == 1


def test_malformed_rows_of_an_array_have_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, BAD, GOOD], indent=0))
    with pytest.raises(ValueError, match=rf"1 of 3:\n  {path}, row 2: 'labels'"):
        read(path)


def test_many_malformed_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(*["{"] * 103))
    with pytest.raises(ValueError, match=r"103 of 103:\n  103 rows, ") as e:
        read(tmp_path / "a.jsonl")
    assert "a.jsonl:3, ...: is not valid JSON" in str(e.value)
    assert str(e.value).splitlines()[2:] == [
        "columns={...} renames columns, strict=false leaves such rows out "
        "(metaopt-label: --columns COLUMN=NAME, --lenient)."
    ]
    (tmp_path / "b.jsonl").write_text(lines(GOOD))
    with pytest.warns(UserWarning, match="103 of 104, left out:\n  103 rows, "):
        assert len(read(tmp_path, strict=False)) == 1


def test_columns_of_other_names_are_renamed(tmp_path: Path) -> None:
    row = {"question": "p", "label": "x", "steps": ["a"], "ok": [True]}
    (tmp_path / "a.jsonl").write_text(lines(row, GOOD))
    names = {"prompt": "question", "completions": "steps", "labels": "ok"}
    renaming = Renaming({**names, "outcome": "other"})
    assert [c.labels for c in read(tmp_path, renaming=renaming)] == [(1.0,), (1.0,)]
    with pytest.raises(ValueError, match=r"columns=\{outcome: other\}: no row has"):
        renaming.refuse_unused()
    (tmp_path / "a.jsonl").write_text(lines({**row, "ok": ["maybe"]}))
    said = (
        r"'labels' must be .*maybe.* \(in the source 'prompt' is 'question', .*'labels' is 'ok'\)"
    )
    with pytest.raises(ValueError, match=said):
        read(tmp_path, renaming=renaming)
    exchanged = {"prompt": ["a"], "completions": "p", "labels": [True]}
    (tmp_path / "a.jsonl").write_text(lines(exchanged))
    renaming = Renaming({"prompt": "completions", "completions": "prompt"})
    (chain,) = read(tmp_path, renaming=renaming)
    assert (chain.prompt, chain.steps) == ("p", ("a",))


@pytest.mark.parametrize("text", ["", "\n", "[]"])
def test_a_file_without_chains_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds no (chain|record)"):
        read(tmp_path / "a.json")


def test_sources_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no file"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must end in one of \.json"):
        read(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="format='x' is none of chain, dreamprm"):
        read(tmp_path / "a.txt", format="x")
    with pytest.raises(ValueError, match=r"must end in \.json"):
        write(tmp_path / "a.parquet", [])


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, data_dir: Any, split: str) -> Any:
        asked.append((*arguments, split))
        return datasets.Dataset.from_list([GOOD, {**GOOD, "labels": [True, False]}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"1 of 2:\n  some/name, train row 2: 'labels'"):
        read("some/name")
    assert asked == [("some/name", None, "train")]
