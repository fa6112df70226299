"""Responses with an outcome: a question, a worked solution, and whether it is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaopt.data.row_texts import text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import flag, optional

QUESTIONS = ("query", "question", "prompt")


def from_solution(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a response: its steps are its lines, and only its outcome is known.

    The question is the column query, question or prompt.

    Raises:
        ValueError: says which column is malformed.
    """
    asked = next((column for column in QUESTIONS if column in row), QUESTIONS[0])
    lines = text(row, "response").split("\n")
    return Chain(
        text(row, asked),
        tuple(line for line in lines if line.strip()),
        outcome=flag(row, "outcome", None),
        policy=optional(row, "system"),
    )
