"""Rows whose steps are a list, or lines: TRL, ProcessBench, BIG-Bench-Mistake, and responses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.data.row_texts import flag, shown, text
from metaopt.problems.process_reward.data.formats.chain import Chain, refuse
from metaopt.problems.process_reward.data.formats.columns import (
    identifier,
    index,
    listed,
    optional,
    share,
    texts,
)

QUESTIONS = ("query", "question", "prompt")
"""Columns that may hold the question of a response."""


def from_stepwise(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of TRL's stepwise type; labels are true, false or in [0, 1].

    Raises:
        ValueError: says which column is malformed.
    """
    steps = texts(row, "completions")
    labels = listed(row, "labels")
    if len(labels) != len(steps):
        raise ValueError(
            f"'labels' must be one per completion; got {len(labels)} for {len(steps)} completions"
        )
    return Chain(text(row, "prompt"), steps, tuple(share(x, "labels") for x in labels))


def to_stepwise(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of TRL's stepwise type; labels are all booleans, or all numbers if one is soft.

    Raises:
        ValueError: chains with an unknown label, for which the type has no place; `truncate` ends
            a chain before it.
    """
    refuse(
        "stepwise", (not all(chain.mask) for chain in chains), "label on one of their steps",
        "`truncate` ends a chain before that step.",
    )  # fmt: skip
    hard = all(label in (0, 1) for chain in chains for label in chain.labels)
    return [
        {
            "prompt": chain.prompt,
            "completions": list(chain.steps),
            "labels": [label == 1 if hard else label for label in chain.labels],
        }
        for chain in chains
    ]


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
        outcome=flag(row, "final_answer_correct", optional=True),
        qid=name,
        domain=source[1] if source else "",
        policy=optional(row, "generator"),
    )


def from_prm_bench(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of PRMBench (Song et al., ACL 2025): the modified solution.

    `error_steps` lists the wrong steps, counted from 1; the others are right. An empty list is a
    solution without a wrong step.

    Raises:
        ValueError: says which column is malformed.
    """
    steps = texts(row, "modified_process")
    wrong = listed(row, "error_steps")
    if any(isinstance(x, bool) or x not in range(1, len(steps) + 1) for x in wrong):
        raise ValueError(
            f"'error_steps' must list steps counted from 1, 1 to {len(steps)}; got "
            f"{shown(row, 'error_steps')}. If yours count from 0, add 1 to each."
        )
    labels = tuple(float(number not in wrong) for number in range(1, len(steps) + 1))
    name = row.get("idx", row.get("id"))
    return Chain(
        text(row, "question"),
        steps,
        labels,
        qid="" if name is None else identifier({"idx": name}, "idx"),
        domain=optional(row, "classification"),
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


def from_solution(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a response: its steps are its lines, and only its outcome is known.

    The question is the column query, question or prompt.

    Raises:
        ValueError: says which column is malformed.
    """
    asked = next((column for column in QUESTIONS if column in row), None)
    if asked is None:
        raise ValueError(
            f"needs its question in one of the columns {', '.join(QUESTIONS)}; its columns are "
            f"{', '.join(map(str, row)):.200}"
        )
    lines = text(row, "response").split("\n")
    return Chain(
        text(row, asked),
        tuple(line for line in lines if line.strip()),
        outcome=flag(row, "outcome", optional=True),
        policy=optional(row, "system"),
    )
