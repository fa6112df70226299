"""A judge's scoring template, a rubric as a text that round-trips, and the scores it asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from metaopt.llm.score_replies import final_score

LOW, HIGH, STEP = 1.0, 10.0, 0.5
"""Range of a judge's score, and the distance between two of them."""

FOOTER = (
    f"Give a score from {LOW} (fails) to {HIGH} (succeeds) in steps of {STEP}.\n"
    "End with one line: Score: <number>"
)
"""How every template ends: what `parse_score` looks for."""

_CRITERION = re.compile(r"- ([a-z][a-z ]*): ([+-][0-9]+\.[0-9]{2})")
_STRICTNESS = re.compile(r"Strictness: ([+-][0-9]+\.[0-9]{2})")
_LIMIT = 9.99


class Rubric(NamedTuple):
    """A template as numbers.

    Args:
        weights: what each criterion adds to (or takes from) a score, by name.
        strictness: what is taken from every score; higher is stricter.
        preamble: what the judge is told first.
    """

    weights: Mapping[str, float]
    strictness: float = 0.0
    preamble: str = "You grade how well a response meets its objective."

    def render(self) -> str:
        """Return the template's text; weights are cut to two decimals and to +-9.99."""
        return "\n".join(
            [
                self.preamble,
                render_weights(self.weights),
                f"Strictness: {_cut(self.strictness):+.2f}",
                FOOTER,
            ]
        )


def render_weights(weights: Mapping[str, float]) -> str:
    """Return the criteria as lines of text; weights are cut to two decimals and to +-9.99."""
    lines = (f"- {name}: {_cut(weight):+.2f}" for name, weight in weights.items())
    return "\n".join(["Criteria and their weights:", *lines])


def parse_weights(text: str) -> dict[str, float]:
    """Return the weights of the criteria that a text has lines of, in their order."""
    matches = [_CRITERION.fullmatch(line.strip()) for line in text.splitlines()]
    return {m[1]: float(m[2]) for m in matches if m}


def parse(text: str) -> Rubric:
    """Return the rubric of a text that `Rubric.render` wrote.

    Raises:
        ValueError: no criteria, or no line of strictness.
    """
    lines, weights = text.splitlines(), parse_weights(text)
    strict = [m for line in lines if (m := _STRICTNESS.fullmatch(line.strip()))]
    if not weights or not strict:
        raise ValueError(
            "a rubric needs lines such as '- clarity: +1.00' and 'Strictness: +0.00'; got "
            f"{text[:80]!r}."
        )
    return Rubric(weights, float(strict[0][1]), lines[0])


@lru_cache(maxsize=256)
def read_rubric_numbers(text: str, names: tuple[str, ...]) -> tuple[np.ndarray, float] | None:
    """Return the weights of `names` in their order, and the strictness, for a simulated judge.

    Returns `None` for a text that is not a rubric, and for a rubric with none of `names`.
    """
    try:
        rubric = parse(text)
    except ValueError:
        return None
    if not set(rubric.weights) & set(names):
        return None
    return np.array([rubric.weights.get(name, 0.0) for name in names]), rubric.strictness


def parse_score(text: str) -> float | None:
    """Return the score that a judge's answer ends with, or `None` without a single valid one.

    The last line must state it, in one of the forms of `score_replies.UNDERSTOOD`, from `LOW` to
    `HIGH` in steps of `STEP`. An answer that is not understood is not a score: it is never read as
    a low one, which would earn alignment on failures.
    """
    score = final_score(text, HIGH)
    if score is None or not LOW <= score <= HIGH:
        return None
    steps = (score - LOW) / STEP
    return score if abs(steps - round(steps)) <= 1e-9 else None


def round_score(score: float) -> float:
    """Return the score on the judge's grid: cut to its range, rounded to its step."""
    return min(HIGH, max(LOW, round(score / STEP) * STEP))


def unit(score: float) -> float:
    """Return the score as a probability: 0 for the lowest, 1 for the highest."""
    return (score - LOW) / (HIGH - LOW)


def graded(logit: float, count: int) -> list[float]:
    """Return a simulated judge's probabilities of `count` choices, from failure to success.

    They are Binomial(count - 1, p) with p = sigmoid(logit): 1 - p and p of two choices; the mean of
    any number of them is p of the way. One choice, which is no grade, has none.
    """
    n, p = count - 1, 0.5 * (1 + math.tanh(logit / 2))
    if not n:
        return [0.0]
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count)]


def _cut(weight: float) -> float:
    return round(min(_LIMIT, max(-_LIMIT, weight)), 2) + 0.0  # adding 0.0 makes -0.0 positive
