"""Criteria against hand counts, Python's own arithmetic, and GSM8K's reference solutions."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from metaopt.problems.template_evolution.solution_criteria import (
    CRITERIA,
    LONGEST,
    arithmetic,
    measure,
)

QUESTION = "Sam buys 3 boxes of 12 pens and gives half of them away. How many pens are left?"
SOLUTION = (
    "Sam buys 3*12=<<3*12=36>>36 pens\n"
    "He gives away 36/2=<<36/2=18>>18 pens\n"
    "He keeps 36-18=<<36-18=19>>19 pens\n"
    "A: 19"
)


def named(question: str, solution: str) -> dict[str, float]:
    return dict(zip(CRITERIA, measure(question, solution), strict=True))


def test_criteria_of_a_solution_counted_by_hand() -> None:
    criteria = named(QUESTION, SOLUTION)
    words = ["sam", "buys", "pens", "he", "gives", "away", "pens", "he", "keeps", "pens", "a"]
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    assert criteria == {
        "length": math.log(1 + len(SOLUTION)),
        "steps": 3.0,
        "calculations": 3.0,
        "arithmetic": pytest.approx(2 / 3),
        "numbers used": 1.0,
        "grounding": 1.0,  # 3, 12 and "half" are the question's, 36 and 18 earlier results
        "chaining": 1.0,
        "agreement": 1.0,
        "whole answer": 1.0,
        "repetition": pytest.approx(1 - len(set(triples)) / len(triples)),
    }


@pytest.mark.parametrize(
    ("solution", "criterion", "value"),
    [
        ("", "arithmetic", 0.0),
        ("", "whole answer", 0.0),
        ("", "length", 0.0),
        ("no numbers", "numbers used", 0.0),
        ("He has <<5+5=10>>10\nA: 12", "agreement", 0.0),
        ("He has <<5+5=10>>10\nA: 12", "grounding", 0.0),
        ("He has <<3+12=15>>15\nThen <<3*12=36>>36", "chaining", 0.0),
        ("So 7", "whole answer", 1.0),
        ("A: 2.5", "whole answer", 0.0),
        ("#### 0", "whole answer", 0.0),
        ("A: 1,000", "whole answer", 1.0),
        ("one two one two one two", "repetition", 0.5),
        ("<<1/3=0.33>>", "arithmetic", 1.0),
        ("<<1/3=0.3>>", "arithmetic", 0.0),
        ("<<3*x=9>> <<2+2=4>>", "arithmetic", 0.5),
        ("<<4/0=0>>", "arithmetic", 0.0),
    ],
)
def test_criterion_has_its_value_on_a_solution(solution: str, criterion: str, value: float) -> None:
    assert named(QUESTION, solution)[criterion] == pytest.approx(value)


def test_numbers_of_the_question_count_once() -> None:
    assert named("3 cats and 3 dogs eat 2.5 and 1,200", "3 and 1200")["numbers used"] == (
        pytest.approx(2 / 3)
    )
    assert named("", "3")["numbers used"] == 1.0


def test_arithmetic_is_exact_arithmetic() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        text, exact = expression(draw, 3)
        assert arithmetic(text) == pytest.approx(float(exact), rel=1e-9)


def expression(draw: np.random.Generator, depth: int) -> tuple[str, Fraction]:
    """Return a random expression in parentheses with its exact value, which is never 0."""
    if depth == 0:
        number = f"{draw.integers(1, 99)}.{draw.integers(1, 9)}"
        return number, Fraction(number)
    (left, a), (right, b) = expression(draw, depth - 1), expression(draw, depth - 1)
    values = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}
    sign = str(draw.choice([s for s, value in values.items() if value]))
    return f"({left} {sign} {right})", values[sign]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2+3*4", 14), ("8/4/2", 1), ("10-4-3", 3), ("-2+.5", -1.5), ("1,200 / 4", 300)],
)
def test_arithmetic_has_the_usual_precedence(text: str, value: float) -> None:
    assert arithmetic(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "2**9", "2//1", "1 if 1 else 2", "__import__('os')", "print(1)", "1e9", "(1)(2)",
        "1, 2)", "4/0", "((", "0x10", "9" * (LONGEST + 1), "(" * 99 + "1" + ")" * 99, "1\n2", "[1]",
    ],
)  # fmt: skip
def test_anything_else_is_refused_or_worked_out_as_arithmetic(text: str) -> None:
    if text.startswith("(" * 99):
        assert arithmetic(text) == 1
        return
    with pytest.raises(ValueError, match=r"arithmetic|worked out|numbers"):
        arithmetic(text)


@pytest.mark.data
def test_reference_solutions_of_gsm8k_look_right() -> None:
    path = Path(os.environ.get("METAOPT_DATA", "")) / "gsm8k/test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    rows = [json.loads(line) for line in path.read_text().splitlines()[:300]]
    values = np.array([measure(row["question"], row["answer"]) for row in rows])
    mean = dict(zip(CRITERIA, values.mean(0), strict=True))
    assert np.isfinite(values).all()
    assert mean["arithmetic"] > 0.98
    assert mean["agreement"] > 0.9
    assert mean["whole answer"] > 0.97
    assert mean["grounding"] > 0.85
