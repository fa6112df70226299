"""Sources that say where the first wrong step is: ProcessBench and BIG-Bench-Mistake.

Steps before it are right, it is wrong, and those after it are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.problems.process_reward.data.formats.chain import Chain, first_wrong
from metaopt.problems.process_reward.data.formats.columns import (
    flag,
    identifier,
    index,
    optional,
    others,
    text,
    texts,
)
from metaopt.problems.process_reward.data.formats.refusals import each

PROCESS_BENCH = ("id", "generator", "problem", "steps", "final_answer_correct", "label")
MISTAKE = ("input", "steps", "mistake_index")


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
        extra={"process_bench": others(row, PROCESS_BENCH)},
    )


def to_process_bench(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of ProcessBench; labels after the first wrong step have no place there.

    Raises:
        ValueError: chains whose labels do not say which step is the first wrong one.
    """

    def row(chain: Chain) -> dict[str, Any]:
        wrong = first_wrong(chain)
        return {
            "id": chain.qid,
            "generator": chain.policy,
            "problem": chain.prompt,
            "steps": list(chain.steps),
            "final_answer_correct": chain.outcome,
            "label": -1 if wrong is None else wrong,
            **chain.extra.get("process_bench", {}),
        }

    return each(chains, row)


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
        extra={"bigbench_mistake": others(row, MISTAKE)},
    )


def to_bigbench_mistake(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of BIG-Bench-Mistake; `answer` and `target` are null in chains from elsewhere.

    Raises:
        ValueError: chains whose labels do not say which step is the first wrong one.
    """

    def row(chain: Chain) -> dict[str, Any]:
        return {
            "input": chain.prompt,
            "steps": list(chain.steps),
            "mistake_index": first_wrong(chain),
            "answer": None,
            "target": None,
            **chain.extra.get("bigbench_mistake", {}),
        }

    return each(chains, row)
