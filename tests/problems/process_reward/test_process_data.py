"""What process-supervision data must hold."""

from __future__ import annotations

from typing import Any

import pytest

from metaopt.problems.process_reward.data.dataset import ProcessData
from metaopt.problems.process_reward.data.formats import Chain, harden

LABELLED = Chain("q", ("s", "t"), (1.0, None), domain="a")
SOFT = Chain("q", ("s", "t"), (1.0, 0.5), qid="9")
RIGHT, WRONG = (Chain("p", ("s",), outcome=x, qid="7") for x in (True, False))
GOOD: dict[str, Any] = {
    "train": [LABELLED, Chain("q", ("s",), (0.5,), domain="b")],
    "meta": [RIGHT, WRONG],
    "candidates": [[RIGHT, WRONG], [WRONG, WRONG]],
    "quality": {"b": 0.5, "a": 0},
    "answers": [["1", "2"], ["3", "3"]],
}


def test_domains_are_sorted() -> None:
    assert ProcessData(**GOOD).domains == ("a", "b")


def test_soft_labels_may_be_held_out_once_they_are_rounded() -> None:
    held_out = {"h": [harden(SOFT, 0.5), LABELLED]}
    assert ProcessData(**GOOD, held_out=held_out).held_out == held_out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"train": []}, "train holds no chain"),
        ({"train": [Chain("q", ("s",), (1.0,))]}, "train: 1 of 1 chains have no domain: chains 0"),
        (
            {"train": [Chain("q", ("s",), domain="a")]},
            "train: 1 of 1 chains have no label: chains 0",
        ),
        (
            {"meta": [RIGHT, Chain("q", ("s",), qid="x")]},
            "meta: 1 of 2 chains have no outcome: chains 1",
        ),
        ({"meta": [Chain("q", (), outcome=True)]}, "meta: 1 of 1 chains have no steps: chains 0"),
        (
            {"candidates": [[RIGHT], [LABELLED]]},
            "candidates: 1 of 2 chains have no outcome: chains 1",
        ),
        (
            {"candidates": [[RIGHT], [RIGHT, WRONG]]},
            r"equally many .* got 1 for 1 questions .'p'.; 2 for 1",
        ),
        ({"candidates": [[], []]}, r"one at least; got 0 for 2 questions"),
        ({"held_out": {"h": [LABELLED, SOFT]}}, "chain 1 '9' of h has the label 0.5; .*`harden`"),
        ({"held_out": {"h": [LABELLED], "i": [RIGHT]}}, "none of the 1 chains of i has a label"),
        ({"held_out": {"i": []}}, "none of the 0 chains of i"),
        ({"quality": {"a": 1}}, "quality must name the training domains a, b; got a"),
        ({"quality": {"a": 1, "b": 1.2}}, r"quality of b must be in \[0, 1\]; got 1.2"),
        ({"quality": {"a": 0, "b": 0}}, "above 0 for one domain"),
        ({"answers": [["1", "2"]]}, "answers must be one for each candidate"),
        ({"answers": [["1", "2"], ["3"]]}, "answers must be one for each candidate"),
    ],
)
def test_what_breaks_a_rule_is_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ProcessData(**{**GOOD, **wrong})
