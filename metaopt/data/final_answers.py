"""The final answer of a worked solution, and whether two answers are the same: rules only."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?")
MARKED = re.compile(r"(?:####|final answer:|^\s*(?:a|answer):)[ \t]*(\S[^\n]*)", re.I | re.M)
DIGITS = 60
"""Longest number that is read as one."""


def final_answer(text: str) -> str:
    r"""Return the final answer of a solution, in a form in which equal answers are equal texts.

    It is what the last `\boxed{...}` holds; else what follows the last `####`, `Final answer:`,
    or `A:` or `Answer:` at the start of a line; else the last number; else "".
    """
    if content := boxed(text):
        return canonical(content)
    marked = MARKED.findall(text)
    if marked:
        return canonical(marked[-1])
    numbers = NUMBER.findall(text)
    return canonical(numbers[-1]) if numbers else ""


@lru_cache(maxsize=16_384)
def canonical(answer: str) -> str:
    """Return an answer without white space around it, the final full stop, `$`, and case.

    A number (1,200; $3.50; 3/4; 12%) becomes a fraction in lowest terms; per cent are dropped.
    """
    plain = " ".join(answer.replace("$", "").casefold().split()).rstrip(".")
    number = value(plain)
    return plain if number is None else str(number)


@lru_cache(maxsize=16_384)
def value(answer: str) -> Fraction | None:
    """Return the number that an answer is, or `None` where it is none."""
    plain = answer.strip().rstrip("%").strip()
    if len(plain) > DIGITS or not NUMBER.fullmatch(plain):
        return None
    try:
        return Fraction(plain.replace(",", "").replace("$", ""))
    except (ValueError, ZeroDivisionError):
        return None


def agree(answer: str, reference: str) -> bool | None:
    """Return whether two answers are the same; `None` where rules cannot tell.

    Equal forms agree, two numbers that differ do not, and no answer is never right.
    """
    given, wanted = canonical(answer), canonical(reference)
    if not given or given == wanted:
        return bool(given)
    if value(given) is not None and value(wanted) is not None:
        return False
    return None


def boxed(text: str) -> str:
    r"""Return what the last `\boxed{...}` holds, or "" where there is none or it is not closed."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return ""
    depth = 0
    for at in range(start + 6, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start + 7 : at]
    return ""
