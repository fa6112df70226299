"""Math-Shepherd: one text with a tag after each step, and again with + or - in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.problems.process_reward.data.formats.chain import Chain, signs
from metaopt.problems.process_reward.data.formats.columns import optional, others, text
from metaopt.problems.process_reward.data.formats.numbered import bare, same, with_headings
from metaopt.problems.process_reward.data.formats.refusals import each

TAG = "ки"
COLUMNS = ("input", "label", "task")


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
    head = TAG.join([*pieces[:first], pieces[first][:cut]])
    signed_head = _joined([*pieces[:first], pieces[first][:cut]], marks[:first])
    split = [bare(x) for x in [pieces[first][cut:], *pieces[first + 1 : -1]]]
    kept = {
        "head": [head, signed_head],
        "spaces": [space for _, space in split],
        "tail": pieces[-1],
        "columns": others(row, COLUMNS),
    }
    return Chain(
        _question(head),
        tuple(step for step, _ in split),
        tuple(float(mark == "+") for mark in marks[first:]),
        domain=optional(row, "task"),
        extra={"math_shepherd": kept},
    )


def _question(head: str) -> str:
    return " ".join(part.strip() for part in head.split(TAG)).strip()


def _joined(pieces: Sequence[str], marks: Sequence[str]) -> str:
    return "".join(x for pair in zip(pieces, [*marks, ""], strict=True) for x in pair)


def _first_step(pieces: Sequence[str]) -> tuple[int, int]:
    """Return in which piece the first step begins, and where.

    Raises:
        ValueError: nothing says where the question ends.
    """
    for number, piece in enumerate(pieces[:-1]):
        found = re.search(r"step 1:", piece, re.IGNORECASE)
        if found:
            return number, found.start()
    if len(pieces) > 1 and "?" in pieces[0]:
        return 0, pieces[0].rindex("?") + 1
    raise ValueError(
        f"'input' must have a step with the tag {TAG} after it, and 'Step 1:' or '?' before it"
    )


def to_math_shepherd(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of Math-Shepherd; steps of chains from elsewhere get "Step 1: ", ... in front.

    Raises:
        ValueError: chains without steps, with a soft or unknown label, or with the tag or
            "Step 1:" in a text that would be read back otherwise.
    """
    return each(chains, _row)


def _row(chain: Chain) -> dict[str, Any]:
    marks = ["+" if right else "-" for right in signs(chain)]
    if not chain.steps:
        raise ValueError("has no steps")
    if any(TAG in x for x in (chain.prompt, *chain.steps)):
        raise ValueError(f"its texts hold a mark of the format: {TAG}")
    kept = chain.extra.get("math_shepherd", {})
    spaces, steps = kept.get("spaces", []), list(chain.steps)
    head, signed_head = kept.get("head", ["", ""])
    if len(spaces) != len(steps):
        spaces, steps = [["", " "]] + [["\n", " "]] * (len(steps) - 1), with_headings(steps)
    if _question(head) != chain.prompt:
        head = signed_head = f"{chain.prompt}\n"
    texts = [before + step + after for step, (before, after) in zip(steps, spaces, strict=True)]
    tail = kept.get("tail", "")
    row = {
        "input": head + "".join(x + TAG for x in texts) + tail,
        "label": signed_head + "".join(x + m for x, m in zip(texts, marks, strict=True)) + tail,
        "task": chain.domain,
        **kept.get("columns", {}),
    }
    same(from_math_shepherd(row), chain.prompt, steps)
    return row
