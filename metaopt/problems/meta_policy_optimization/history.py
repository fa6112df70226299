"""The history of a rubric as a diff, in `rubric.md` and in the report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from metaopt.problems.meta_policy_optimization.item_scores import read_weights


def changes(history: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Return (inner run, rubric before, rubric of it) wherever the rubric changed.

    Args:
        history: the rubric of each inner run, the first one included.
    """
    for number, after in enumerate(history[1:], 2):
        before = history[number - 2]
        if after != before:
            yield number, before, after


def diff(before: str, after: str) -> str:
    """Return the items of the new rubric, with + before what is new and - before what is gone.

    The order of the items says nothing, so that one that has only moved is unchanged.
    """
    old, new = read_weights(before), read_weights(after)
    lines = []
    for name in dict.fromkeys([*old, *new]):
        sides = [side.get(name) for side in (old, new)]
        marked = [(" ", sides[0])] if sides[0] == sides[1] else zip("-+", sides, strict=True)
        lines += [
            f"{mark} {line}"
            for mark, weight in marked
            if weight is not None
            for line in item_lines(name, weight)
        ]
    return "\n".join(lines)


def item_lines(name: str, weight: float) -> list[str]:
    """Return an item for people to read: what it is called, with its points, and the rest."""
    first, *rest = name.splitlines()
    return [f"{first}: {weight:+.2f}", *(f"    {line}" for line in rest)]


def _fenced(text: str, language: str) -> str:
    """Return a block of Markdown, under a fence that is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def history_markdown(history: Sequence[str]) -> str:
    """Return `rubric.md`: the last rubric as a table and as text, and how it came about."""
    last = history[-1]
    rows = [
        f"| {' '.join(name.split()).replace('|', chr(92) + '|')} | {weight:+.2f} |"
        for name, weight in read_weights(last).items()
    ]
    parts = [
        "# Rubric", "\n".join(["| criterion | points |", "|---|---|", *rows]),
        "As the judge is given it:", _fenced(last, "text"), "## History",
        "The first rubric:", _fenced(history[0], "text"),
    ]  # fmt: skip
    for number, before, after in changes(history):
        parts += [f"Before inner run {number}:", _fenced(diff(before, after), "diff")]
    return "\n\n".join(parts) + "\n"
