"""The score that a judge's reply ends with, and the form of a reply that states none.

Judges are asked for a last line `Score: <number>`. Many models decorate it: with emphasis, a scale,
a code fence, JSON. What can only mean one number is read; anything else is not a score, since
a score that was misread cannot be told from one that was given.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

UNDERSTOOD = (
    "Score: 8", "**Score: 8**", "Score: 8/10", "8 out of 10", "Rating: [[8]]", '{"score": 8}',
)  # fmt: skip
"""Last lines that are read as 8; the JSON may span lines, and all may stand in a code fence."""

_MARK = r"[*_`]{0,3}"  # emphasis or code
_NAME = r"(?:(?:final|overall|total)\s+)?(?:score|rating)"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_SCALE = r"(?:\s*(?:/|of|out\sof)\s*([0-9]+(?:\.[0-9]+)?))"
_NAMED = re.compile(
    rf"(?:#+\s+|[-*>]\s+)?{_MARK}{_NAME}{_MARK}\s*[:=]{_MARK}\s*{_MARK}"
    rf"(?:{_NUMBER}{_MARK}{_SCALE}?|\[\[{_NUMBER}\]\]){_MARK}\.?{_MARK}",
    re.IGNORECASE,
)
_BARE = re.compile(rf"{_MARK}(?:{_NUMBER}{_SCALE}|\[\[{_NUMBER}\]\]){_MARK}\.?{_MARK}", re.I)
FENCE = re.compile(r"(?:```|~~~)\s*\w*")
"""A line that begins or ends a block of code."""

_KEY = re.compile(rf"{_NAME}".replace(r"\s+", "[ _]"), re.IGNORECASE)
_JSON_SCORE = re.compile(r"\"(?:score|rating)\"\s*:", re.IGNORECASE)
_SCALE_KEY = re.compile(
    r"(?:(?:score|rating)[ _]?)?(?:max(?:imum)?|scale|out[ _]?of|range|best)"
    r"(?:[ _]?(?:score|rating|value|points))?",
    re.IGNORECASE,
)
_VALUE = re.compile(rf"{_NUMBER}{_SCALE}?")

MOST_BRACES = 64
"""Opening braces at which JSON may start; a reply with more of them is not read as JSON."""

_NONE = math.nan
"""A statement of a score on another scale, or of two scores."""


def final_score(text: str, highest: float) -> float | None:
    """Return the number that the reply states as its score, or `None` without a single one.

    The reply must end with one of the forms of `UNDERSTOOD`; other lines that state a score must
    state the same one. A scale, where it is given, must end at `highest`. The number is not checked
    against a range.

    Args:
        text: the reply.
        highest: the largest score of the scale that was asked for.
    """
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not FENCE.fullmatch(line)]
    if not lines:
        return None
    text = "\n".join(lines)
    start = _json_start(text)
    if start is None:
        last = _in_line(lines[-1], highest)
    else:
        last = _in_object(json.loads(text[start:], object_pairs_hook=_Pairs), highest)
        lines = [line.strip() for line in text[:start].splitlines()]
    stated = {value for line in lines if (value := _in_line(line, highest)) is not None}
    twice = any(_JSON_SCORE.search(line) for line in lines)
    return None if last is None or math.isnan(last) or stated - {last} or twice else last


def form(text: str, lines: int = 3, width: int = 80) -> str:
    """Return the shape of the end of a reply, without its words: what a log may show of it.

    Letters become x and digits 9, except in the words score and rating.

    Example:
        >>> form("It is direct. Score - eight")
        'xx xx xxxxxx. Score - xxxxx'

    Args:
        text: the reply.
        lines: how many of its last lines that are not blank.
        width: most characters of each, from its end.
    """
    shown = [line.strip()[-width:] for line in text.splitlines() if line.strip()][-lines:]
    parts = re.split(r"\b(score|rating)\b", "\n".join(shown), flags=re.IGNORECASE)
    return "".join(part if i % 2 else _masked(part) for i, part in enumerate(parts))


def _masked(text: str) -> str:
    return "".join("9" if c.isnumeric() else "x" if c.isalpha() else c for c in text)


def _in_line(line: str, highest: float) -> float | None:
    match = _NAMED.fullmatch(line) or _BARE.fullmatch(line)
    return None if match is None else _number(match.groups(), highest)


def _number(groups: Sequence[str | None], highest: float) -> float:
    """Return the number of (number, scale, number in brackets), or NaN on another scale."""
    number, scale, bracketed = (*groups, None)[:3]
    if scale is not None and float(scale) != highest:
        return _NONE
    return float(number or bracketed or "nan")


def _json_start(text: str) -> int | None:
    """Return where the JSON object starts that the text ends with, or `None` without one."""
    starts = [match.start() for match in re.finditer("{", text)]
    if not text.endswith("}") or len(starts) > MOST_BRACES:
        return None
    for start in starts:  # the outermost object first
        with suppress(ValueError, RecursionError):
            json.loads(text[start:])
            return start
    return None


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, those of the same name included."""


def _in_object(pairs: _Pairs, highest: float) -> float | None:
    values = [value for key, value in pairs if _KEY.fullmatch(key)]
    if not values:
        return None
    scales = [value for key, value in pairs if _SCALE_KEY.fullmatch(key)]
    if len(values) > 1 or any(scale != highest for scale in scales):
        return _NONE
    if isinstance(values[0], str):
        match = _VALUE.fullmatch(values[0].strip())
        return _NONE if match is None else _number(match.groups(), highest)
    number = values[0]
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number > highest:
        return _NONE  # an integer of JSON may be too large for a float
    return float(number)
