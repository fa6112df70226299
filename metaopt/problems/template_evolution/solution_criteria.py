"""Ten numbers that a program can read off a worked solution, for judges made of criteria.

Calculations are annotations such as `<<3*4=12>>`, as in GSM8K (Cobbe et al., 2021). The numbers
say how a solution looks; none of them knows the right answer.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

CRITERIA = {
    "length": "log(1 + characters)",
    "steps": "lines, the answer's left out",
    "calculations": "annotated calculations",
    "arithmetic": "share of the calculations whose result is right; 0 without any",
    "numbers used": "share of the question's numbers that occur in the solution; 1 without any",
    "grounding": "share of operands that are in the question or an earlier result; 0 without any",
    "chaining": "share of results but the last that a later calculation uses; 1 without any",
    "agreement": "1 when the answer is the last calculation's result, else 0",
    "whole answer": "1 when the answer is a positive whole number, else 0",
    "repetition": "share of three-word sequences that have occurred before",
}
"""What each criterion measures, in the order of `measure`."""

CLOSE = 0.01
"""A result is right when it is off by at most this share of the value, or of 1 below 1."""

LONGEST = 200
"""Characters of the longest expression that is worked out; a longer one counts as wrong."""

_CALCULATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_ANSWER = re.compile(r"^(?:A:|####)", re.MULTILINE)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_WORD = re.compile(r"[a-z]+")
_ARITHMETIC = re.compile(r"[\d\s.+\-*/()]+")
_NAMED = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "twice": 2, "half": 2, "double": 2, "triple": 3, "third": 3,
    "quarter": 4, "dozen": 12,
}  # fmt: skip
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


@lru_cache(maxsize=16_384)
def measure(question: str, solution: str) -> tuple[float, ...]:
    """Return the values of `CRITERIA`, in their order; all are finite.

    Args:
        question: what was asked; "" where that is not known.
        solution: the text to measure.
    """
    lines = [line for line in solution.splitlines() if line.strip()]
    calculations = _CALCULATION.findall(solution)
    operands = [_numbers(left) for left, _ in calculations]
    results = [(_numbers(right) or [math.nan])[-1] for _, right in calculations]
    answer = _answer(solution)
    last = results[-1] if results else math.nan
    return (
        math.log1p(len(solution)),
        float(sum(not _ANSWER.match(line) for line in lines)),
        float(len(calculations)),
        _share([_right(left, right) for left, right in calculations], 0.0),
        _share([n in set(_numbers(solution)) for n in set(_numbers(question))], 1.0),
        _share(_grounded(question, operands, results), 0.0),
        _share(_chained(operands, results), 1.0),
        float(answer is not None and abs(answer - last) <= CLOSE),
        float(answer is not None and answer > 0 and answer == round(answer)),
        _repetition(_CALCULATION.sub("", solution).lower()),
    )


def arithmetic(expression: str) -> float:
    """Return the value of an expression of numbers, + - * / and parentheses.

    Raises:
        ValueError: anything else, a division by zero, or more than `LONGEST` characters.
    """
    text = expression.strip().replace(",", "")
    if not _ARITHMETIC.fullmatch(text) or len(text) > LONGEST:
        raise ValueError(f"{expression[:40]!r} is not arithmetic of at most {LONGEST} characters.")
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression[:40]!r} cannot be worked out: {error}.") from None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"{ast.unparse(node)[:40]!r} is not of numbers, + - * / and parentheses.")


def _right(left: str, right: str) -> bool:
    try:
        value, said = arithmetic(left), arithmetic(right)
    except ValueError:
        return False
    return abs(value - said) <= CLOSE * max(1.0, abs(value))


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _answer(solution: str) -> float | None:
    """Return the first number after `A:` or `####`, else the last one; `None` without any."""
    mark = _ANSWER.search(solution)
    numbers = _numbers(solution[mark.end() :] if mark else solution)
    return numbers[0 if mark else -1] if numbers else None


def _grounded(
    question: str, operands: Sequence[Sequence[float]], results: Sequence[float]
) -> list[bool]:
    given = set(_numbers(question))
    given |= {_NAMED[word] for word in _WORD.findall(question.lower()) if word in _NAMED}
    grounded: list[bool] = []
    for numbers, result in zip(operands, results, strict=True):
        grounded += [n in given for n in numbers]
        given.add(result)
    return grounded


def _chained(operands: Sequence[Sequence[float]], results: Sequence[float]) -> list[bool]:
    return [
        any(result in numbers for numbers in operands[i + 1 :])
        for i, result in enumerate(results[:-1])
    ]


def _repetition(text: str) -> float:
    words = _WORD.findall(text)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _share(cases: Sequence[bool], empty: float) -> float:
    return sum(cases) / len(cases) if cases else empty
