"""A rubric of free items: what is judged, in any words, with the points that it can earn.

    <item number=1 points=+5>
    Cites a source for each claim.
    5: for every claim; 3: for most; 0: for none.
    </item>

Items keep their order. One that is there twice, word for word and with the same points, is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s>\"']+)"
# Up to the next tag, so that a text of opening tags alone is searched once, not for each of them.
_BLOCK = re.compile(
    rf"<item((?:\s+\w+\s*=\s*{_VALUE})*)\s*>((?:(?!</?item\b).)*)</item>", re.DOTALL
)
_POINTS = re.compile(r"\bpoints\s*=\s*[\"']?([+-]?[0-9]+(?:\.[0-9]+)?)[\"']?(?=\s|$)")
_TAG = re.compile(r"</?(?:item|rubric)\b", re.IGNORECASE)
_HIGHEST = 99.0


class Item(NamedTuple):
    """What a response is judged by.

    Args:
        text: what is judged, in one or more lines.
        points: most that it can earn, or, where negative, lose; never 0.
    """

    text: str
    points: float


def has_items(text: str) -> bool:
    """Return whether a text is meant as a rubric of free items."""
    return "<item" in text


def render_items(items: Iterable[Item]) -> str:
    """Return the items as text, numbered in their order; `parse_items` reads it back.

    Points are rounded to two decimals. One that is there twice is written once.

    Raises:
        ValueError: no item; one without words, with a tag of the rubric among them, or whose points
            round to 0 or are beyond +-99; the same words with different points.
    """
    distinct: dict[str, float] = {}
    for text, points in items:
        words, rounded = text.strip(), round(points, 2)
        if not words or _TAG.search(words):
            raise ValueError(
                f"an item of a rubric needs words, none of which is a tag such as </item>; got "
                f"{words[:80]!r}."
            )
        if not 0 < abs(rounded) <= _HIGHEST:
            raise ValueError(
                f"points of an item must be between -{_HIGHEST:g} and {_HIGHEST:g}, and not 0; got "
                f"{points} for {words[:80]!r}."
            )
        if distinct.setdefault(words, rounded) != rounded:
            raise ValueError(
                f"an item has {distinct[words]:g} and {rounded:g} points: {words[:80]!r}."
            )
    if not distinct:
        raise ValueError("a rubric needs an item such as <item points=5>is clear</item>.")
    return "\n".join(
        f"<item number={i} points={points:+g}>\n{words}\n</item>"
        for i, (words, points) in enumerate(distinct.items(), 1)
    )


def parse_items(text: str) -> list[Item]:
    """Return the items that a text has blocks of, in their order.

    Attributes other than points, such as a number, are not read, nor is what stands between blocks.

    Raises:
        ValueError: a block without points or without an end, one inside another, and what
            `render_items` refuses.
    """
    items = []
    for attributes, words in _BLOCK.findall(text):
        points = _POINTS.search(attributes)
        if points is None:
            raise ValueError(f"an item needs points, as in <item points=5>; got {words[:80]!r}.")
        items.append(Item(words.strip(), round(float(points[1]), 2)))
    tags = len(re.findall(r"</?item\b", text, re.IGNORECASE))
    if tags != 2 * len(items):
        raise ValueError(
            f"each <item points=5> needs its </item>; got {len(items)} whole items and {tags} tags."
        )
    render_items(items)
    return list(dict.fromkeys(items))
