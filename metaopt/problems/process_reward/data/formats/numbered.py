"""Steps that a text announces with headings "Step 1:", "Step 2:", ..."""

from __future__ import annotations

import re
from collections.abc import Sequence

from metaopt.problems.process_reward.data.formats.chain import Chain


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
    if all(s.lower().startswith(f"step {i}:") for i, s in enumerate(steps, 1)):
        return list(steps)
    return [f"Step {i}: {step}" for i, step in enumerate(steps, 1)]


def same(back: Chain, prompt: str, steps: Sequence[str]) -> None:
    """Check that what was written reads as it should, but for white space around a text.

    Raises:
        ValueError: it does not.
    """
    said, read = [prompt, *steps], [back.prompt, *back.steps]
    if len(said) != len(read):
        raise ValueError(
            f"its texts hold a mark of the format: {len(steps)} steps would be read as "
            f"{len(back.steps)}"
        )
    for one, other in zip(said, read, strict=True):
        if one.strip() != other.strip():
            raise ValueError(
                f"its texts hold a mark of the format: {one.strip()!r:.60} would be read as "
                f"{other.strip()!r:.60}, of {len(one)} and {len(other)} characters"
            )
