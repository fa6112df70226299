"""Math-Shepherd: one text with a tag after each step, and again with + or - in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.data.row_texts import text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import optional

TAG = "ки"


def from_math_shepherd(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of Math-Shepherd (Wang et al., ACL 2024).

    The question ends where the first "Step 1:" begins, or after its last "?" where there is none;
    a tag inside the question, which a dozen published rows have, labels nothing.

    Raises:
        ValueError: says which column is malformed, or that the two texts differ.
    """
    tagged, signed = text(row, "input"), text(row, "label")
    pieces = tagged.split(TAG)
    marks: list[str] = []
    at = 0
    for piece in pieces[:-1]:
        at += len(piece)
        marks.append(signed[at : at + 1])
        at += 1
    wrong = next((i for i, mark in enumerate(marks) if mark not in ("+", "-")), None)
    if wrong is not None:
        raise ValueError(f"'label' has no + or - at tag {wrong} of {len(marks)}")
    if _joined(pieces, marks) != signed:
        raise ValueError("'label' must be the text of 'input' with + or - for its tags")
    first, cut = _first_step(pieces)
    question = [*pieces[:first], pieces[first][:cut]]
    return Chain(
        " ".join(part.strip() for part in question).strip(),
        tuple(step.strip() for step in [pieces[first][cut:], *pieces[first + 1 : -1]]),
        tuple(float(mark == "+") for mark in marks[first:]),
        domain=optional(row, "task"),
    )


def _joined(pieces: Sequence[str], marks: Sequence[str]) -> str:
    return "".join(x for pair in zip(pieces, [*marks, ""], strict=True) for x in pair)


def _first_step(pieces: Sequence[str]) -> tuple[int, int]:
    """Return in which piece the first step begins, and where.

    Raises:
        ValueError: nothing says where the question ends.
    """
    for number, piece in enumerate(pieces[:-1]):
        heading = re.search(r"step 1:", piece, re.IGNORECASE)
        if heading:
            return number, heading.start()
    if len(pieces) > 1 and "?" in pieces[0]:
        return 0, pieces[0].rindex("?") + 1
    raise ValueError(
        f"'input' must have a step with the tag {TAG} after it, and 'Step 1:' or '?' before it"
    )
