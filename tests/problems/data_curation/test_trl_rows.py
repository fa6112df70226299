"""Rows in TRL's formats, and the sentences for those that are none."""

import json

import pytest
from tiny_rows import turn

from metaopt.data.records import records
from metaopt.problems.data_curation.trl_rows import (
    demonstration,
    labelled_steps,
    preference,
    with_prompt,
)

ASK, SAY = turn("user", "sum"), turn("assistant", "3")


def test_demonstrations_come_as_texts_messages_or_one_text():
    assert demonstration({"prompt": "a", "completion": "b"})[:2] == ("a", ("b",))
    assert demonstration({"messages": [ASK, SAY]})[:2] == (None, ([ASK, SAY],))
    shared = {"conversations": [{"from": "user", "value": "sum"}, SAY]}
    assert demonstration(shared).completions == ([ASK, SAY],)
    assert demonstration({"text": "a b"})[:2] == (None, ("a b",))


def test_csv_has_lists_as_texts(tmp_path):
    path = tmp_path / "rows.csv"
    cells = [json.dumps([ASK, SAY]).replace('"', '""')]
    path.write_text(f'messages\n"{cells[0]}"\n')
    (record,) = records(path)
    assert demonstration(record.value).completions == ([ASK, SAY],)
    row = {"prompt": "q", "completions": '["a", "b"]', "labels": "[true, false]"}
    assert labelled_steps(row)[1:3] == (("a", "b"), (1, 0))


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("ab", "ac", "a"),
        ("abc", "abcd", "ab"),
        ([ASK, SAY], [ASK, turn("assistant", "4")], [ASK]),
    ],
)
def test_an_implicit_prompt_is_what_answers_have_in_common(chosen, rejected, prompt):
    pair = with_prompt(preference({"chosen": chosen, "rejected": rejected}))
    assert pair.prompt == prompt
    assert pair.completions == (chosen[len(prompt) :], rejected[len(prompt) :])


@pytest.mark.parametrize(
    ("read", "row", "sentence"),
    [
        (demonstration, {"question": "a"}, "needs the columns prompt and completion, or messages"),
        (demonstration, {"prompt": "a"}, "needs the columns prompt and completion; it has prompt"),
        (demonstration, {"prompt": "a", "completion": " "}, "'completion' is empty"),
        (demonstration, {"prompt": "a", "completion": None}, "'completion' must be a text or a"),
        (demonstration, {"prompt": "a", "completion": [SAY]}, "must be all texts or all messages"),
        (demonstration, {"messages": []}, "at least one; got"),
        (demonstration, {"messages": [ASK]}, "'messages' has no turn of the assistant"),
        (demonstration, {"prompt": [ASK], "completion": [ASK]}, "must end with a turn of the"),
        (preference, {"chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are equal"),
        (preference, {"chosen": "a", "rejected": "b", "margin": "x"}, "'margin' must be a number"),
        (labelled_steps, {"prompt": "a", "completions": ["b"]}, "completions and labels"),
        (labelled_steps, {"prompt": "a", "completions": ["b"], "labels": []}, "0 labels of 1 step"),
        (labelled_steps, {"prompt": "a", "completions": ["b"], "labels": [2]}, "must be true, fal"),
        (labelled_steps, {"prompt": "a", "completions": [], "labels": []}, "is empty"),
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_refused_with_a_sentence(read, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(row)
