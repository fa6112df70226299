"""Recorded responses: columns, outcomes, splits by query, and what is refused."""

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
    result = solutions(path)
    assert result.queries == ("p", "q")
    assert result.rows == (Solution(0, "1", True), Solution(1, "2", False), Solution(0, "3", False))
    assert result.source == "a.jsonl"


def test_the_first_questions_are_taken_with_all_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(row(q, "r", o) for q in "abcab" for o in (1, 0, None)))
    result = solutions(path, questions=2)
    assert result.queries == ("a", "b")
    assert [r.query for r in result.rows] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert result.ambiguous == 4
    with pytest.raises(ValueError, match="questions must be at least 2"):
        solutions(path, questions=1)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"ask": "q", "said": "r", "ok": 1, "system": "s", "x": 2})
    result = solutions(path, query="ask", response="said", outcome="ok")
    assert result.rows == (Solution(0, "r", True, "s"),)


def test_rows_without_queries_are_queries_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"response": r, "outcome": 1} for r in "aab"))
    result = solutions(path, query=None)
    assert result.queries == ("", "", "")
    assert [r.query for r in result.rows] == [0, 1, 2]


def test_an_ambiguous_outcome_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("p", "1", None), row("q", "2"))
    result = solutions(path)
    assert result.ambiguous == 1
    assert result.queries == ("q",)
    assert [r.response for r in result.rows] == ["2"]


def test_outcomes_of_csv_are_texts_and_responses_stay_texts(tmp_path: Path) -> None:
    outcomes = ["1", "0", "True", "FALSE", "Yes", "no", "1.0", "0.0", ""]
    path = tmp_path / "a.csv"
    path.write_text("query,response,outcome\n" + "".join(f"q,42,{o}\n" for o in outcomes))
    result = solutions(str(path))
    assert [row.outcome for row in result.rows] == [True, False] * 4
    assert {row.response for row in result.rows} == {"42"}
    assert result.ambiguous == 1
    path.write_text("query,response,outcome\nq,r,1\nq,r,maybe\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: 'outcome' must be .*got 'maybe'"):
        solutions(str(path))


def test_questions_with_several_systems(tmp_path: Path) -> None:
    nested = {
        "question": "q",
        "ground_truth": "A: 1",
        "small": {"solution": "A: 1", "is_correct": True},
        "large": {"solution": "A: 2", "is_correct": False},
    }
    result = solutions(write(tmp_path / "a.jsonl", nested))
    assert result.queries == ("q",)
    assert result.rows == (Solution(0, "A: 1", True, "small"), Solution(0, "A: 2", False, "large"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is not an object"),
        (
            {"query": "q", "outcome": 1},
            "no column 'response'; columns are query, outcome. Give the names",
        ),
        (row(response=3), "'response' must be a text; got 3"),
        (
            {"response": "r", "outcome": 1},
            "no column 'query'; columns are response, outcome. Give the",
        ),
        ({"query": "q", "response": "r"}, "no column 'outcome'"),
        (row(outcome="x"), "'outcome' must be true, false, yes, no, 1, 0 or null; got 'x'"),
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


def test_a_missing_column_is_named_with_the_argument_that_renames_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"query": "q", "said": "r", "ok": 1})
    with pytest.raises(ValueError, match=r"'response' and 'outcome'.*: response=NAME outcome=NAME"):
        solutions(path)


def test_many_malformed_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *["{"] * 12)
    with pytest.raises(
        ValueError, match=r"12 in all:\n  12 rows, .*a.jsonl:3, \.\.\.: is not"
    ) as e:
        solutions(path)
    assert len(str(e.value).splitlines()) == 2


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
    result = solutions(write(tmp_path / "a.jsonl", *(row(str(i)) for i in range(11))))
    training, other = result.split(0.5, seed=3)
    assert sorted(training + other) == list(range(11))
    assert len(training) == 6
    assert result.split(0.5, seed=3) == (training, other)
    assert result.split(0.5, seed=4) != (training, other)
    assert [len(part) for part in result.split(0.001, seed=0)] == [1, 10]
    assert [len(part) for part in result.split(0.999, seed=0)] == [10, 1]
    with pytest.raises(ValueError, match="0 < share < 1"):
        result.split(1.0, seed=0)


@pytest.mark.data
def test_gsm8k_is_read_whole() -> None:
    path = Path(os.environ.get("METAOPT_DATA", ""))
    path /= "gsm8k/example_model_solutions.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    result = solutions()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    expected = Counter(s for r in rows for s in r if isinstance(r[s], dict) and r[s]["is_correct"])
    assert len(result.queries) == len(rows) == 1319
    assert len(result.rows) == 4 * 1319
    assert Counter(r.system for r in result.rows if r.outcome) == expected
    assert result.queries[7] == rows[7]["question"]


def test_spaces_at_the_ends_make_no_other_query(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("q "), row("q", outcome=False), row("r"), row(" q"))
    result = solutions(path)
    assert result.queries == ("q ", "r")
    assert [x.query for x in result.rows] == [0, 0, 1, 0]
