"""What live workers are asked by each block, and how their replies are read."""

from __future__ import annotations

import re
from collections.abc import Sequence

ANSWER = "End with a line `Answer: <final answer>`."

SOLVE = "Answer the question. Think step by step. " + ANSWER + "\n\nQuestion: {question}"

REFINE = (
    "Look through a solution step by step. If it is right, state it again; if it is wrong, correct "
    "it. " + ANSWER + "\n\nQuestion: {question}\n\nSolution:\n{solution}"
)

CRITIC = (
    "Is the solution right? Check each step and say what is wrong. End with a line `Verdict: right`"
    " or `Verdict: wrong`.\n\nQuestion: {question}\n\nSolution:\n{solution}"
)

REVISE = (
    "A critic has found a solution wrong. Correct it where the critic is right. "
    + ANSWER
    + "\n\nQuestion: {question}\n\nSolution:\n{solution}\n\nCritic:\n{notes}"
)

ARGUE = (
    "You and another expert have different solutions. Read both, find where they part, and state "
    "the solution that you now hold. "
    + ANSWER
    + "\n\nQuestion: {question}\n\nYour solution:\n{own}\n\nThe other's solution:\n{other}"
)

JUDGE = (
    "Which of the solutions is right? Check them. End with a line `Choice: <number>`.\n\n"
    "Question: {question}\n\n{candidates}"
)

_VERDICT = re.compile(r"^[^\w\n]*verdict\W+(right|wrong)\b", re.I | re.M)
_CHOICE = re.compile(r"^[^\w\n]*choice\W+(\d{1,4})\b", re.I | re.M)


def judging(question: str, solutions: Sequence[str]) -> str:
    """Return the question to a judge of some solutions."""
    candidates = "\n\n".join(f"Solution {n}:\n{text}" for n, text in enumerate(solutions, 1))
    return JUDGE.format(question=question, candidates=candidates)


def found_wrong(reply: str | None) -> bool:
    """Return whether a critic's last verdict is "wrong"; a reply without one flags nothing."""
    verdicts = _VERDICT.findall(reply or "")
    return bool(verdicts) and verdicts[-1].lower() == "wrong"


def choice(reply: str | None, count: int) -> int:
    """Return the index of a judge's last choice; 0 where it has made none that is legal."""
    chosen = _CHOICE.findall(reply or "")
    number = int(chosen[-1]) if chosen else 1
    return number - 1 if 1 <= number <= count else 0
