"""Steps that a text announces with headings "Step 1:", "Step 2:", ..."""

from __future__ import annotations

import re
from collections.abc import Sequence


def bare(piece: str) -> tuple[str, list[str]]:
    """Return a text without the white space around it, and that white space."""
    begin = len(piece) - len(piece.lstrip())
    core = piece.strip()
    return core, [piece[:begin], piece[begin + len(core) :]]


def headings(text: str) -> list[int]:
    """Return where steps 1, 2, 3, ... begin: at the start of a line, marked up or not."""
    starts: list[int] = []
    while True:
        heading = re.compile(
            rf"^[ \t]*(?:[#>*_-]+[ \t]*)*step[\s:]*{len(starts) + 1}\b",
            re.MULTILINE | re.IGNORECASE,
        )
        found = heading.search(text, starts[-1] + 1 if starts else 0)
        if found is None:
            return starts
        starts.append(found.start())


def with_headings(steps: Sequence[str]) -> list[str]:
    """Return the steps, all under "Step 1: ", "Step 2: ", ... unless they all are already."""
    if all(re.match(rf"\W*step[\s:]*{i}\b", s, re.IGNORECASE) for i, s in enumerate(steps, 1)):
        return list(steps)
    return [f"Step {i}: {step}" for i, step in enumerate(steps, 1)]
