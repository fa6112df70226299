"""TRL's stepwise supervision: a prompt, its completions step by step, one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.data.row_texts import text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import listed, share, texts


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
    partial = [i for i, chain in enumerate(chains) if not all(chain.mask)]
    if partial:
        raise ValueError(
            f"{len(partial)} of {len(chains)} chains have a step without a label, which stepwise "
            f"rows cannot hold; the first is chain {partial[0]} {chains[partial[0]].qid!r}. "
            "`truncate` ends a chain before that step."
        )
    hard = all(label in (0, 1) for chain in chains for label in chain.labels)
    return [
        {
            "prompt": chain.prompt,
            "completions": list(chain.steps),
            "labels": [label == 1 if hard else label for label in chain.labels],
        }
        for chain in chains
    ]
