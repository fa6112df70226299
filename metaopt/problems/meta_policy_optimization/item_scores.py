"""A rubric of items: what its judge is asked to end with, and the scores that a reply states.

An item has a weight in points: a response earns from 0 to the weight, or, where the weight is
negative, loses from 0 to it. The reward is the sum of the items' points, scaled.

A rubric is a list of criteria, each a few lower-case words, which simulated worlds know; or it has
free items, `<item points=5>` blocks of any text, for language models (`metaopt.llm.rubric_items`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, get_args

from metaopt.llm.rubric import parse_weights, render_weights
from metaopt.llm.rubric_items import Item, has_items, parse_items, render_items
from metaopt.llm.score_replies import FENCE, final_score

FOOTER = (
    "Judge the criteria one by one. Give each a line '- <criterion>: <points>', the points between "
    "0 and its weight.\n"
    "End with one line: Total: <the sum of the points>"
)
"""How every rubric of criteria ends: what `item_scores` looks for."""

FREE_FOOTER = (
    "Judge the items one by one, in their order: first your reasons in a sentence, then on a line "
    "of its own 'Item <number>: <points>', a whole number between 0 and the item's points. Of an "
    "item of -4 points that is from 0 (not the case) to -4 (fully the case).\n"
    "End with one line: Total: <the sum of the points>"
)
"""How every rubric of free items ends."""

PREAMBLE = "You grade a response to a task."

Scale = Literal["total", "mean", "sum"]
SCALES = get_args(Scale)
OUT_OF = 10.0
"""What a rubric is out of under scale="total"."""

_POINTS = r"([+-]?[0-9]+(?:\.[0-9]+)?)"
# What models decorate a line with: a bullet or heading, emphasis or code.
_LEAD, _MARK = r"(?:[-*>]\s+|#+\s+)?", r"[*_`]{0,3}"
_END = rf"(?:\s*(?:/|out of)\s*{_POINTS})?(?:\s+(?:points?|pts))?{_MARK}\.?{_MARK}"
_STATES = rf"{_MARK}\s*[:=]\s*{_MARK}\s*"
_ITEM = re.compile(rf"[-*]\s+{_MARK}([a-z](?:[a-z ]*[a-z])?){_STATES}{_POINTS}{_END}")
_NUMBERED = re.compile(rf"{_LEAD}{_MARK}item\s+([0-9]+){_STATES}{_POINTS}{_END}", re.IGNORECASE)
_TOTAL = re.compile(  # as a sum, too: 3 - 2 = 1
    rf"{_LEAD}{_MARK}total{_STATES}(?:[-+0-9.()\s]*=\s*)?{_POINTS}{_END}", re.IGNORECASE
)
_ROUNDING = 0.01


def render(weights: Mapping[str, float], free: bool = False) -> str:
    """Return the text of a rubric of criteria; one whose weight rounds to 0 is left out.

    Args:
        weights: points of each criterion, by its name in lower-case words.
        free: make a rubric of free items, whose names are any texts and whose points are not 0.

    Raises:
        ValueError: no item is left, or see `metaopt.llm.rubric_items.render_items`.
    """
    if free:
        return "\n".join(
            [PREAMBLE, render_items(map(Item, weights, weights.values())), FREE_FOOTER]
        )
    items = {name: weight for name, weight in weights.items() if abs(weight) >= 0.005}
    if not items:
        raise ValueError(f"a rubric needs an item with a weight that is not 0; got {weights}.")
    return "\n".join([PREAMBLE, render_weights(items), FOOTER])


@lru_cache(maxsize=256)
def read_weights(text: str) -> Mapping[str, float]:
    """Return the weight of each item of a rubric, in their order.

    Raises:
        ValueError: the text is not a rubric of items, or the weight of one is 0.
    """
    if has_items(text):
        return dict(parse_items(text))
    weights = parse_weights(text)
    empty = [name for name, weight in weights.items() if not weight]
    if empty or not weights:
        raise ValueError(
            "a rubric needs lines such as '- clarity: +5.00', of weights that are not 0; got "
            f"{(empty or [text[:80]])[0]!r}."
        )
    return weights


def item_scores(
    reply: str, weights: Mapping[str, float], free: bool = False
) -> dict[str, float] | None:
    """Return the points of each item; `None` where a reply does not state all of them as asked.

    Every item must have one line with points between 0 and its weight, no other item may have one,
    and the last line must state their sum, with or without decoration, such as emphasis, a heading,
    the sum's terms or a block of code around it all. A reply that fails is no score: read as a low
    one, it would be a signal to learn from; and points beyond the weight would outweigh a batch.

    Args:
        reply: of the judge.
        weights: points of each item.
        free: whether they are free items, whose lines have their numbers.

    A scale behind the points, as in 4/5, must end at the item's.
    """
    stripped = [line.strip() for line in reply.replace("\u2212", "-").splitlines()]  # a minus sign
    *lines, last = [line for line in stripped if line and not FENCE.fullmatch(line)] or [""]
    total = _TOTAL.fullmatch(last)
    stated = [match for line in lines if (match := (_NUMBERED if free else _ITEM).fullmatch(line))]
    names = {str(i): name for i, name in enumerate(weights, 1)} if free else {n: n for n in weights}
    # Adding 0.0 makes -0.0 positive.
    scores = {names.get(match[1], ""): float(match[2]) + 0.0 for match in stated}
    if total is None or len(stated) != len(scores) or scores.keys() != weights.keys():
        return None
    for (name, points), match in zip(scores.items(), stated, strict=True):
        scale = match[3] or weights[name]
        if not within(points, weights[name]) or abs(float(scale)) != abs(weights[name]):
            return None
    if abs(sum(scores.values()) - float(total[1])) > _ROUNDING * len(scores):
        return None
    return {name: scores[name] for name in weights}


def within(points: float, weight: float) -> bool:
    """Return whether points are between 0 and the weight of their item."""
    low, high = sorted((0.0, weight))
    return low - 1e-9 <= points <= high + 1e-9


def one_item_score(reply: str, weight: float) -> float | None:
    """Return the points of one item, of a reply that ends with `Score: <0 to |weight|>`.

    `None` where it does not, or where the score is beyond the range.
    """
    score = final_score(reply, abs(weight))
    if score is None or not within(score, abs(weight)):
        return None
    return score if weight > 0 else 0.0 - score


def render_scores(points: Mapping[str, float]) -> str:
    """Return a reply that states the points of each item, as `item_scores` reads it."""
    lines = [f"- {name}: {value:.3f}" for name, value in points.items()]
    return "\n".join([*lines, f"Total: {sum(points.values()):.3f}"])


def factor(weights: Mapping[str, float], scale: Scale) -> float:
    """Return what the sum of the items' points is multiplied with to make the reward.

    "total": `OUT_OF` over the sum of the absolute weights, so that the reward of a longer rubric
    does not outweigh the KL penalty; "mean": 1 over the number of items; "sum": 1, as in the
    authors' release, where a rewrite from 1 to 12 items multiplies the reward.
    """
    if scale == "sum":
        return 1.0
    if scale == "mean":
        return 1 / len(weights)
    return OUT_OF / sum(map(abs, weights.values()))
