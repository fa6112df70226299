from __future__ import annotations

import pytest

from metaopt.llm.rubric import parse_score
from metaopt.llm.score_replies import UNDERSTOOD, form

NONE = [
    "", "\n \n", "A good answer, about 8.", "Score: 8\nBecause it is direct.",
    "Score: 3\nScore: 8", "Score: 3 Score: 8", "The final Score: 8", "Score: 0.5", "Score: 10.5",
    "Score: -3", "Score: 7.3", "Score: nan", "Score: inf", "Score: 1e1", "Score: seven", "Score:",
    "Score: ٧", "Score: \uff18", "8",
    # another scale, a range, the scale itself
    "Score: 8/100", "Score: 8/5", "Score: 8 out of 100", "8/100", "Score: 80%", "Score: 1-10",
    "Score: 1\u201310", "Score: 1 to 10", "Score: 1.0 (fails) to 10.0 (succeeds)",
    "Score: <number>", "Score: 8/10/10",
    # not one number from 1 to 10
    "Score: 8,5", "Score: 1,000", "Score: 3 or 8", "-8 out of 10", "[[3]] [[8]]", "[[8]",
    "Score: 1*0", "Score: 8..", "Score: 0x8", "Score: 1_0", "Score: 100",
    "Score: 8 (out of 100)",
    # two scores
    "Score: 3/10\nScore: 8", "Score: 8/100\nScore: 8", "Score: 3\n8/10", 'Score: 3\n{"score": 8}',
    '{"score": 3}\n{"score": 8}', '{"score": 3} {"score": 8}', 'Score: 3 {"score": 8}',
    '{"score": 3}\nScore: 8', '{"score": 3, "score": 8}', '{"score": 3, "rating": 8}',
    # JSON that is none, or whose score is not a number on this scale
    '{"score": 8', '{"score": 8, "max_score": 100}', '{"score": 8, "scale": 5}',
    '{"score": 8, "out_of": 9}', '{"score": true}', '{"score": NaN}',
    '{"score": 1e400}', '{"score": [8]}', '{"score": "8/100"}', '{"score": null}', '{"points": 8}',
    '{"score": 8} as I said', "{" * 10_000 + "}", '{"score": ' + "9" * 400 + "}",
]  # fmt: skip
"""Replies without a single valid score at their end."""

SEVEN = [
    "Score: 7", "It keeps to the point.\n\nScore: 7.0", "Score: 7.0\n\n  \n", "  Score:   7  ",
    "Score: 7\nOn reflection, the same.\nScore: 7.0", "Score: 7.", "Score:\u00a07",
    "Score: 7/10", "Score: 7 / 10",
    "Score: 7 of 10", "Score: 7 out of 10.", "7 out of 10", "7/10", "[[7]]", "Rating: [[7]]",
    "score: 7", "Final score: 7", "**Score: 7**", "**Score:** 7", "**Score**: 7/10",
    "Score: **7**/10", "__Score: 7__", "### Score: 7",
    "> Score: 7", "- Score: 7.", "`Score: 7`", "```\nScore: 7\n```",
    "From 1.0 (fails) to 10.0 (succeeds).\nScore: <number>\nScore: 7", "Clarity score: 3\nScore: 7",
    '{"score": 7}', '{"why": "{x}", "Score": 7.0}', '{"score": "7/10"}',
    '{"score": 7, "max_score": 10}', '{"score": 7, "best_part": "tone", "arranged": 3}',
    '{"score": 7, "parts": {"score": 3}}',
    '```json\n{"why": "short",\n "score": 7}\n```',
    'It fits {well}.\n{"overall_score": 7}',
]  # fmt: skip
"""Replies that end with the score 7 and nothing else."""

TABLE = [*((text, None) for text in NONE), *((text, 7.0) for text in SEVEN)]


@pytest.mark.parametrize(("text", "score"), TABLE)
def test_only_a_single_valid_footer_is_a_score(text: str, score: float | None) -> None:
    assert parse_score(text) == score


def test_every_step_of_the_range_is_read_back() -> None:
    for i in range(19):
        assert parse_score(f"Because.\nScore: {1 + i / 2:.1f}") == 1 + i / 2


@pytest.mark.parametrize("number", ["0.5", "10.5", "3.25", "7.1"])
def test_a_number_off_the_grid_is_no_score(number: str) -> None:
    assert parse_score(f"Score: {number}") is None


def test_the_forms_that_a_refusal_lists_are_read() -> None:
    assert [parse_score(f"Because.\n{text}") for text in UNDERSTOOD] == [8.0] * len(UNDERSTOOD)


def test_the_form_of_a_reply_has_none_of_its_words() -> None:
    text = "first line\n\nThe canary sings: aria 4b.\n" + "y" * 100 + "\n**Score** - eight of ten!"
    assert form(text) == "xxx xxxxxx xxxxx: xxxx 9x.\n" + "x" * 80 + "\n**Score** - xxxxx xx xxx!"
    assert form("") == ""
