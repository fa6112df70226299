"""Generated worked solutions with known outcomes: what a judge is calibrated on by default.

A question is a story of two to five steps; four systems of different skill answer it. A wrong
solution has a slip of arithmetic, an invented number, a step left out, or a wrong operation, which
a program cannot see. Weak systems write more, so that length speaks against a solution.
"""

from __future__ import annotations

import numpy as np

from metaopt.data.solutions import Solution, Solutions
from metaopt.engine.random import fold

NAMES = ("Ada", "Ben", "Chen", "Dana", "Emil", "Femi", "Gita", "Hugo")
THINGS = ("apples", "books", "coins", "eggs", "marbles", "pens", "shells", "stamps")
STORY = {"+": "gets {} more", "-": "gives {} away", "*": "then has {} times as many"}
SKILLS = (0.35, 0.5, 0.65, 0.8)
"""Probability that each system solves a question."""

ERRORS = ("slip", "invented", "left out", "operation")
FILLER = "Let us think about this carefully before going on."

Step = tuple[str, int]


def arithmetic_solutions(questions: int = 400, seed: int = 0) -> Solutions:
    """Return questions with one response of each system.

    Args:
        questions: number of questions, >= 2.
        seed: another seed is another data set.

    Raises:
        ValueError: fewer than two questions.
    """
    if questions < 2:
        raise ValueError(f"arithmetic_solutions needs questions >= 2; got {questions}.")
    draw = np.random.default_rng(fold(seed, "arithmetic solutions"))
    texts, responses = [], []
    for query in range(questions):
        start, steps = _story(draw)
        name, thing = draw.choice(NAMES), draw.choice(THINGS)
        events = ". ".join(f"{name} {STORY[op].format(n)}" for op, n in steps)
        texts.append(
            f"Story {query + 1}: {name} has {start} {thing}. {events}. How many {thing} are there?"
        )
        for system, skill in enumerate(SKILLS):
            right = bool(draw.random() < skill)
            response = _solution(start, steps, right, draw)
            responses.append(Solution(query, response, right, f"system {system + 1}"))
    return Solutions(tuple(texts), tuple(responses), source=f"generated arithmetic, seed {seed}")


def _story(draw: np.random.Generator) -> tuple[int, list[Step]]:
    start = value = int(draw.integers(10, 60))
    steps: list[Step] = []
    for _ in range(int(draw.integers(2, 6))):
        op = str(draw.choice(["+", "-", "*"], p=[0.45, 0.4, 0.15]))
        op = "+" if op == "-" and value < 4 else op
        most = {"+": 40, "-": value - 1, "*": 4}[op]
        steps.append((op, int(draw.integers(2, most + 1))))
        value = _apply(value, *steps[-1])
    return start, steps


def _solution(start: int, steps: list[Step], right: bool, draw: np.random.Generator) -> str:
    """Return a response whose answer is right or not, with its calculations annotated."""
    written, slip, error = list(steps), -1, "" if right else str(draw.choice(ERRORS))
    at = int(draw.integers(len(steps)))
    op, n = steps[at]
    if error == "slip":
        slip = at
    elif error == "invented":
        written[at] = (op, n + int(draw.integers(1, 9)))
    elif error == "left out":
        del written[at]
    elif error == "operation":
        written[at] = ("-" if op == "+" else "+", n)
    value, lines = start, []
    for i, (op, n) in enumerate(written):
        result = _apply(value, op, n) + (int(draw.integers(1, 9)) if i == slip else 0)
        lines.append(f"{value} {op} {n} = <<{value}{op}{n}={result}>>{result}")
        value = result
    truth = start
    for step in steps:
        truth = _apply(truth, *step)
    value += 0 if right or value != truth else 1  # two errors may cancel; the outcome is known
    lines += [FILLER] * int(draw.binomial(3, 0.2 if right else 0.45))
    return "\n".join([*lines, f"A: {value}"])


def _apply(value: int, op: str, n: int) -> int:
    return {"+": value + n, "-": value - n, "*": value * n}[op]
