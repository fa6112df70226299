from __future__ import annotations

import pytest

from metaopt.problems.template_evolution.rubric import parse_score

TABLE = [
    ("Score: 7.5", 7.5),
    ("It keeps to the point.\n\nScore: 10", 10.0),
    ("Score: 1.0\n\n  \n", 1.0),
    ("  Score:   3  ", 3.0),
    ("Score: 4\nOn reflection, the same.\nScore: 4.0", 4.0),
    ("", None),
    ("\n \n", None),
    ("A good answer, about 8.", None),
    ("Score: 8\nBecause it is direct.", None),
    ("Score: 3\nScore: 8", None),
    ("Score: 3 Score: 8", None),
    ("The final Score: 8", None),
    ("Score: 8/10", None),
    ("Score: 8.", None),
    ("Score: 8 of 10", None),
    ("score: 8", None),
    ("Score: 0.5", None),
    ("Score: 10.5", None),
    ("Score: -3", None),
    ("Score: 7.3", None),
    ("Score: nan", None),
    ("Score: inf", None),
    ("Score: 1e1", None),
    ("Score: seven", None),
    ("Score: ٧", None),
    ("Score:", None),
    ("**Score: 8**", None),
]


@pytest.mark.parametrize(("text", "score"), TABLE)
def test_only_a_single_valid_footer_is_a_score(text: str, score: float | None) -> None:
    assert parse_score(text) == score


def test_every_step_of_the_range_is_read_back() -> None:
    for i in range(19):
        assert parse_score(f"Because.\nScore: {1 + i / 2:.1f}") == 1 + i / 2


@pytest.mark.parametrize("number", ["0.5", "10.5", "3.25", "7.1"])
def test_a_number_off_the_grid_is_no_score(number: str) -> None:
    assert parse_score(f"Score: {number}") is None
