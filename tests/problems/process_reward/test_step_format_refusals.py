"""What a format cannot say and what a row may not hold: every refusal names it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from published_rows import (
    MATH_SHEPHERD,
    ROWS,
    put,
)

from metaopt.problems.process_reward.data.formats import Chain, read, write


def test_unknown_labels_have_no_place_in_trls_rows(tmp_path: Path) -> None:
    good, bad = Chain("p", ("a",), (1.0,)), Chain("p?", ("a", "b"), (1.0, None), qid="it")
    says = "2 of 3 chains have no label on one of their steps: chains 0, 2. `truncate`"
    with pytest.raises(ValueError, match=says):
        write(tmp_path / "a.json", [bad, good, bad], "stepwise")
    with pytest.raises(ValueError, match="format must be chain or stepwise; got 'prm800k'"):
        write(tmp_path / "a.json", [good], "prm800k")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"problem": "p", "steps": []}, "process_bench (problem, steps, label), which lacks label"),
        ({"answer": "r", "correct": 1}, "chain (prompt, steps, step_label), which lacks prompt"),
        (
            {"question": "q", "solution": [], "step_ok": []},
            "chain (prompt, steps, step_label), by columns={prompt: question, steps: solution, "
            "step_label: step_ok}; stepwise (prompt, completions, labels), by columns={",
        ),
        ({"prompt": "p", "completions": []}, "completions, labels), which lacks labels"),
    ],
)
def test_columns_of_no_format_are_named_with_the_nearest(
    row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="its columns are those of no format") as error:
        read(put(tmp_path / "a.json", [row]))
    assert f"{', '.join(row)}. Nearest: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"labels": (1.0,)}, "one per step; got 1 for 2"),
        ({"labels": (1.0, 1.5)}, r"in \[0, 1\]"),
        ({"labels": (1.0, float("nan"))}, r"in \[0, 1\]"),
        ({"successes": (1, 2)}, "together"),
        ({"successes": (5, 0), "rollouts": (4, 4)}, "got 5 of 4"),
        ({"successes": (1, None), "rollouts": (4, 4)}, "both its successes"),
    ],
)
def test_a_chain_that_contradicts_itself_is_refused(keep: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Chain("p", ("a", "b"), **keep)


def broken(name: str, change: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the value at each path, by dots, replaced."""
    row: Any = copy.deepcopy(ROWS[name][0])
    for path, value in change.items():
        *before, last = [int(x) if x.isdigit() else x for x in path.split(".")]
        at = row
        for key in before:
            at = at[key]
        at[last] = value
    return row


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("chain", {"steps": "s"}, "'steps' must be a list; got 's'"),
        ("chain", {"steps": [1, 2, 3]}, "'steps' must be a text; got 1"),
        ("chain", {"step_label": [2, 0, 0]}, "'step_label' must be in [0, 1]"),
        ("chain", {"step_rollouts": [1.5, 1, 1]}, "'step_rollouts' must be a whole number"),
        ("chain", {"outcome": 2}, "'outcome' must be true, false, yes, no, 1, 0 or null; got 2"),
        ("chain", {"temperature": "hot"}, "'temperature' must be a number"),
        ("chain", {"prompt": "\ud800"}, "half of a surrogate pair"),
        ("dreamprm", {"add": " "}, "no such step"),
        ("dreamprm", {"accuracy": 0.9}, "'accuracy' is 0.9, but score / times is 7 / 11"),
        ("dreamprm", {"score": 12}, "got 12 of 11"),
        ("dreamprm", {"score": None}, "given together"),
        ("dreamprm", {"score": None, "times": None, "accuracy": None}, "has neither"),
        (
            "dreamprm_meta",
            {"true_false": "x"},
            "'true_false' must be true, false, yes, no, 1 or 0; got",
        ),
        ("dreamprm15", {"conversations.2.value": "0"}, "must be + or -; got ['0']"),
        ("dreamprm15", {"conversations.1.value": "q"}, "has no step"),
        ("dreamprm15", {"conversations.3.from": "gpt"}, "one gpt turn after it"),
        ("dreamprm15", {"conversations.0": "x"}, "conversations[0] must be"),
        ("dreamprm15", {"conversations": []}, "begin with a human turn"),
        ("dreamprm15_meta", {"conversations.3.value": "-"}, "answers '+' at every step"),
        ("stepwise", {"labels": [True]}, "got 1 for 2 completions"),
        ("stepwise", {"labels": ["yes", True]}, "'labels' must be in [0, 1]"),
        ("prm800k", {"question": "q"}, "its columns are those of no format"),
        ("prm800k", {"label.steps.1": 3}, "label.steps[1]: must be an object"),
        ("prm800k", {"label.steps.1.completions.0.rating": 2}, "completion 0 must have a rating"),
        ("prm800k", {"label.steps.1.completions.0.rating": []}, "completion 0 must have a rating"),
        ("prm800k", {"label.steps.1.chosen_completion": 1}, "none of the 1 completions"),
        ("math_shepherd", {"label": "+"}, "no + or - at tag 0 of 3"),
        ("math_shepherd", {"input": "x", "label": "x"}, "must have a step"),
        (
            "process_bench",
            {"label": 3},
            "'label' must be -1 or a step's index, 0 to 2; got 3, "
            "which is none; are the steps counted from 1?",
        ),
        ("process_bench", {"label": None}, "got None"),
        (
            "prm_bench",
            {"error_steps": [0]},
            "counted from 1, 1 to 3; got [0]. If yours",
        ),
        ("prm_bench", {"error_steps": [4]}, "counted from 1, 1 to 3; got [4]"),
        ("prm_bench", {"error_steps": 2}, "'error_steps' must be a list; got 2"),
        ("process_bench", {"id": 1.5}, "'id' must be a text or a number"),
        ("bigbench_mistake", {"mistake_index": -1}, "must be None or a step's index"),
        ("bigbench_mistake", {"answer": 3}, "'answer' must be a text; got 3"),
    ],
)
def test_a_malformed_row_is_named(
    name: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [*ROWS[name], broken(name, change)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"malformed rows of .*a\.jsonl, 1 of {len(rows)}:") as e:
        read(path)
    assert f"{path}:{len(rows)}: " in str(e.value)
    assert says in str(e.value)


def test_a_math_shepherd_label_of_another_text_is_named(tmp_path: Path) -> None:
    row = {**MATH_SHEPHERD[0], "label": MATH_SHEPHERD[0]["label"].replace("bags", "bugs")}
    with pytest.raises(ValueError, match="the text of 'input'"):
        read(put(tmp_path / "a.json", [row]))


@pytest.mark.parametrize(
    ("row", "says", "not_said"),
    [
        ({"question": "q", "label": 1}, "no format: question, label. Nearest: ", "prm800k"),
        (
            {"problem": "q", "steps": ["a", "b"], "label": [1, 0]},
            "stepwise (prompt, completions, labels), by columns={prompt: problem, completions: "
            "steps, labels: label}",
            "label), by columns={label: label}",
        ),
        (
            {"question": "q", "steps": ["a", "b"], "values": [0.9, 0.1]},
            "chain (prompt, steps, step_label), by columns={prompt: question, step_label: values}",
            "by columns={label: values}",
        ),
        (
            {"task": "q", "input": "x", "steps": ["a"], "first_error": 0},
            "bigbench_mistake (input, steps, mistake_index), by columns={mistake_index: "
            "first_error}",
            "prm800k",
        ),
    ],
)
def test_a_row_of_no_format_is_told_which_could_read_it(
    row: dict[str, Any], says: str, not_said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="its columns are those of no format") as error:
        read(put(tmp_path / "a.json", [row]))
    assert says in str(error.value)
    assert not_said not in str(error.value)
