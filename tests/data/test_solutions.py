from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from metaopt.data.solutions import Solution, solutions


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return str(path)


def row(query: str = "q", response: str = "r", outcome: object = True) -> dict[str, object]:
    return {"query": query, "response": response, "outcome": outcome}


def test_rows_of_one_query_are_kept_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("p", "1"), row("q", "2", 0), "", row("p", "3", False))
    found = solutions(path)
    assert found.queries == ("p", "q")
    assert found.rows == (Solution(0, "1", True), Solution(1, "2", False), Solution(0, "3", False))
    assert found.source == "a.jsonl"


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"ask": "q", "said": "r", "ok": 1, "system": "s", "x": 2})
    found = solutions(path, query="ask", response="said", outcome="ok")
    assert found.rows == (Solution(0, "r", True, "s"),)


def test_rows_without_queries_are_queries_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"response": r, "outcome": 1} for r in "aab"))
    found = solutions(path, query=None)
    assert found.queries == ("", "", "")
    assert [r.query for r in found.rows] == [0, 1, 2]


def test_an_ambiguous_outcome_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("p", "1", None), row("q", "2"))
    found = solutions(path)
    assert found.ambiguous == 1
    assert found.queries == ("q",)
    assert [r.response for r in found.rows] == ["2"]


def test_questions_with_several_systems(tmp_path: Path) -> None:
    nested = {
        "question": "q",
        "ground_truth": "A: 1",
        "small": {"solution": "A: 1", "is_correct": True},
        "large": {"solution": "A: 2", "is_correct": False},
    }
    found = solutions(write(tmp_path / "a.jsonl", nested))
    assert found.queries == ("q",)
    assert found.rows == (Solution(0, "A: 1", True, "small"), Solution(0, "A: 2", False, "large"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is no object"),
        ({"query": "q", "outcome": 1}, "no column 'response'"),
        (row(response=3), "'response' must be a text; got 3"),
        ({"response": "r", "outcome": 1}, "'query' must be a text; got no such column"),
        ({"query": "q", "response": "r"}, "'outcome' must be true, false, 1, 0 or null"),
        (row(outcome="yes"), "got 'yes'"),
        (row(outcome=2), "got 2"),
        (row(outcome=0.5), "got 0.5"),
        ('{"query": "q", "response": "\\ud800", "outcome": 1}', "surrogate"),
        ({"question": "q", "s": {"solution": "a"}}, "'is_correct' must be"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, bad: object, says: str) -> None:
    path = write(tmp_path / "a.jsonl", row(), bad)
    with pytest.raises(ValueError, match=r"rows of a\.jsonl, 1 in all") as error:
        solutions(path)
    assert f"{path}:2: " in str(error.value)
    assert says in str(error.value)


def test_many_malformed_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *["{"] * 12)
    with pytest.raises(ValueError, match=r"12 in all(?s:.)*a.jsonl:10: (?s:.)*and 2 more"):
        solutions(path)


def test_nothing_with_an_outcome_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no response with an outcome"):
        solutions(write(tmp_path / "a.jsonl", row(outcome=None)))


def test_missing_gsm8k_says_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"metaopt-fetch gsm8k.*METAOPT_DATA") as error:
        solutions()
    assert str(tmp_path / "gsm8k" / "example_model_solutions.jsonl") in str(error.value)


def test_a_split_is_by_query_and_seeded(tmp_path: Path) -> None:
    found = solutions(write(tmp_path / "a.jsonl", *(row(str(i)) for i in range(11))))
    training, other = found.split(0.5, seed=3)
    assert sorted(training + other) == list(range(11))
    assert len(training) == 6
    assert found.split(0.5, seed=3) == (training, other)
    assert found.split(0.5, seed=4) != (training, other)
    assert [len(part) for part in found.split(0.001, seed=0)] == [1, 10]
    assert [len(part) for part in found.split(0.999, seed=0)] == [10, 1]
    with pytest.raises(ValueError, match="0 < share < 1"):
        found.split(1.0, seed=0)


@pytest.mark.data
def test_gsm8k_is_read_whole() -> None:
    path = Path(os.environ.get("METAOPT_DATA", ""))
    path /= "gsm8k/example_model_solutions.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found = solutions()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    expected = Counter(s for r in rows for s in r if isinstance(r[s], dict) and r[s]["is_correct"])
    assert len(found.queries) == len(rows) == 1319
    assert len(found.rows) == 4 * 1319
    assert Counter(r.system for r in found.rows if r.outcome) == expected
    assert found.queries[7] == rows[7]["question"]
