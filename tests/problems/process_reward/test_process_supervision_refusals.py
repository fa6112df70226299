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

from metaopt.problems.process_reward.data.formats import Chain, read, rows_of


@pytest.mark.parametrize(
    ("name", "labels", "says"),
    [
        ("stepwise", (1.0, None), "step 1 has no label"),
        ("process_bench", (0.5, 0.0), "`harden` rounds"),
        ("bigbench_mistake", (None, 1.0), "labels that are 1 before it"),
        ("math_shepherd", (1.0, None), "`truncate` ends"),
        ("dreamprm15", (0.5, 1.0), "must be 0 or 1"),
        ("dreamprm15_meta", (1.0, 1.0), "outcome is unknown"),
        ("dreamprm_meta", (1.0, 1.0), "outcome is unknown"),
        ("dreamprm", (None, None), "no step with a label"),
        ("prm800k", (1.0, 0.5), "-1, 0, 1 or null"),
    ],
)
def test_what_a_format_cannot_say_is_refused_with_the_count(
    name: str, labels: tuple[float | None, ...], says: str
) -> None:
    good = Chain("p", ("a", "b"), (1.0, 0.0), outcome=True, domain="d")
    bad = Chain("p?", ("a", "b"), labels, qid="it")
    assert len(rows_of([good], name)) in (1, 2)
    with pytest.raises(ValueError, match=r"2 of 3 chains cannot be written") as error:
        rows_of([bad, good, bad], name)
    assert "chain 0 'it': " in str(error.value)
    assert "chain 2 'it': " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "prompt", "step"),
    [
        ("math_shepherd", "Step 1: what?", "a"),
        ("math_shepherd", "Why?", "the tag ки"),
        ("math_shepherd", "The tag ки?", "a"),
        ("dreamprm_meta", "Do\nStep 1: what?", "a"),
        ("dreamprm_meta", "Why?", "a\nStep 2: b"),
        ("dreamprm_meta", "Why?", "a\nFinal answer: b"),
    ],
)
def test_texts_that_hold_a_formats_marks_are_refused(name: str, prompt: str, step: str) -> None:
    with pytest.raises(ValueError, match="its texts hold a mark of the format"):
        rows_of([Chain(prompt, (step,), (1.0,), outcome=True)], name)


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
        ("chain", {"outcome": 2}, "'outcome' must be true, false, 1 or 0, or null; got 2"),
        ("chain", {"temperature": "hot"}, "'temperature' must be a number"),
        ("chain", {"extra": []}, "'extra' must be an object"),
        ("chain", {"prompt": "\ud800"}, "half of a surrogate pair"),
        ("dreamprm", {"add": " "}, "no such step"),
        ("dreamprm", {"accuracy": 0.9}, "'accuracy' is 0.9, but score / times is 7 / 11"),
        ("dreamprm", {"score": 12}, "got 12 of 11"),
        ("dreamprm", {"score": None}, "given together"),
        ("dreamprm", {"score": None, "times": None, "accuracy": None}, "has neither"),
        ("dreamprm_meta", {"true_false": "yes"}, "'true_false' must be true, false, 1 or 0; got"),
        ("dreamprm15", {"conversations.2.value": "0"}, "must be + or -; got ['0']"),
        ("dreamprm15", {"conversations.1.value": "q"}, "has no step"),
        ("dreamprm15", {"conversations.3.from": "gpt"}, "one gpt turn after it"),
        ("dreamprm15", {"conversations.0": "x"}, "conversations[0] must be"),
        ("dreamprm15", {"conversations": []}, "begin with a human turn"),
        ("dreamprm15_meta", {"conversations.3.value": "-"}, "answers '+' at every step"),
        ("stepwise", {"labels": [True]}, "got 1 for 2 completions"),
        ("stepwise", {"labels": ["yes", True]}, "'labels' must be in [0, 1]"),
        ("prm800k", {"question": "q"}, "'question' must be an object"),
        ("prm800k", {"label.steps.1": 3}, "label.steps[1]: must be an object"),
        ("prm800k", {"label.steps.1.completions.0.rating": 2}, "completion 0 must have a rating"),
        ("prm800k", {"label.steps.1.completions.0.rating": []}, "completion 0 must have a rating"),
        ("prm800k", {"label.steps.1.chosen_completion": 1}, "none of the 1 completions"),
        ("math_shepherd", {"label": "+"}, "no + or - at tag 0 of 3"),
        ("math_shepherd", {"input": "x", "label": "x"}, "must have a step"),
        ("process_bench", {"label": 3}, "'label' must be -1 or a step's index, 0 to 2; got 3"),
        ("process_bench", {"label": None}, "got None"),
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
