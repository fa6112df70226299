"""Sources that say where the first wrong step is: ProcessBench and BIG-Bench-Mistake.

Steps before it are right, it is wrong, and those after it are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from metaopt.data.row_texts import text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import (
    flag,
    identifier,
    index,
    optional,
    texts,
)


def labels_until(wrong: int | None, length: int) -> tuple[float | None, ...]:
    """Return labels 1 before the first wrong step, 0 there, and unknown after it."""
    if wrong is None:
        return (1.0,) * length
    return (1.0,) * wrong + (0.0,) + (None,) * (length - wrong - 1)


def from_process_bench(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of ProcessBench (Zheng et al., ACL 2025).

    Its `label` is the index of the first wrong step, from 0, or -1. In the published files every
    chain without a wrong step has a right answer, and so have 521 of the 2,221 with one.

    Raises:
        ValueError: says which column is malformed.
    """
    steps = texts(row, "steps")
    name = identifier(row)
    source = re.fullmatch(r"(.+)-\d+", name)
    return Chain(
        text(row, "problem"),
        steps,
        labels_until(index(row, "label", len(steps), none=-1), len(steps)),
        outcome=flag(row, "final_answer_correct", None),
        qid=name,
        domain=source[1] if source else "",
        policy=optional(row, "generator"),
    )


def from_bigbench_mistake(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of BIG-Bench-Mistake (Tyen et al., Findings of ACL 2024).

    `mistake_index` is the index of the first wrong step, from 0, or null. The outcome is whether
    `answer` equals `target`, but for spaces and a full stop at the ends; a chain that reached no
    answer (null) is wrong. Without a target the outcome is unknown.

    Raises:
        ValueError: says which column is malformed.
    """
    steps = texts(row, "steps")
    answer, target = optional(row, "answer"), optional(row, "target")
    return Chain(
        text(row, "input"),
        steps,
        labels_until(index(row, "mistake_index", len(steps), none=None), len(steps)),
        outcome=answer.strip(" .\n") == target.strip(" .\n") if target else None,
    )
