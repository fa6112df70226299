"""The one error of the reward language."""

from __future__ import annotations


class InvalidReward(ValueError):
    """A text that is no reward: the message says where, what is wrong and what is legal.

    Args:
        problem: a sentence.
        line, column: the place in the text, from 1; `None` where it is the whole text.
    """

    def __init__(self, problem: str, line: int | None = None, column: int | None = None) -> None:
        self.problem, self.line, self.column = problem, line, column
        place = "" if line is None else f" line {line}"
        place += "" if column is None else f", column {column}"
        super().__init__(f"Reward{place}: {problem}")
