"""Features of a question that are read from its text: what a route may look at."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from metaopt.problems.agent_programs.workers import Ints

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")

KEYWORDS = {
    "each": r"\b(?:each|every|per)\b",
    "fraction": r"\b(?:half|third|thirds|quarter|quarters|fifth|fraction)\b|\d/\d",
    "percent": r"%|\bper ?cent\b",
    "times": r"\b(?:times|twice|thrice|double|triple)\b",
    "total": r"\b(?:total|altogether|combined|sum|in all)\b",
    "left": r"\b(?:left|remain\w*|rest)\b",
    "compare": r"\b(?:more|less|fewer|older|younger|longer|shorter) than\b",
    "money": r"[$€£]|\b(?:dollars?|cents?|cost\w*|price\w*)\b",
}
"""Occurrences of a pattern, upper and lower case alike."""


def _counter(pattern: re.Pattern[str]) -> Callable[[str], int]:
    return lambda text: len(pattern.findall(text))


FEATURES: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "numbers": _counter(_NUMBER),
    "sentences": _counter(_SENTENCE),
    **{name: _counter(re.compile(pattern, re.I)) for name, pattern in KEYWORDS.items()},
}
"""Counts in a question's text: words, numbers in digits, ends of sentences, and `KEYWORDS`."""

QUANTILES = (0.25, 0.5, 0.75)
"""Where the thresholds of a feature lie."""


def features_of(texts: Sequence[str]) -> dict[str, Ints]:
    """Return each feature of the questions, (questions,)."""
    return {
        name: np.array([count(text) for text in texts], dtype=np.int64)
        for name, count in FEATURES.items()
    }


def thresholds_of(values: Ints) -> tuple[int, ...]:
    """Return the thresholds that routes over a feature are drawn from: its quartiles.

    Empty where no threshold divides the questions.
    """
    quartiles = {int(q) for q in np.quantile(values, QUANTILES, method="lower")}
    return tuple(sorted(q for q in quartiles if (values > q).any() and (values <= q).any()))
