"""TRL's stepwise supervision: a prompt, its completions step by step, one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import listed, others, share, text, texts
from metaopt.problems.process_reward.data.formats.refusals import each

COLUMNS = ("prompt", "completions", "labels")


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
    return Chain(
        text(row, "prompt"),
        steps,
        tuple(share(x, "labels") for x in labels),
        extra={"stepwise": others(row, COLUMNS)},
    )


def to_stepwise(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of TRL's stepwise type; labels are all booleans, or all numbers if one is soft.

    Raises:
        ValueError: chains with an unknown label, for which the type has no place; `truncate` ends
            a chain before it.
    """
    hard = all(label in (0, 1) for chain in chains for label in chain.labels)

    def row(chain: Chain) -> dict[str, Any]:
        if not all(chain.mask):
            raise ValueError(
                f"step {chain.mask.index(False)} has no label. `truncate` ends a chain there"
            )
        labels = [label == 1 if hard else label for label in chain.labels]
        own = {"prompt": chain.prompt, "completions": list(chain.steps), "labels": labels}
        return {**own, **chain.extra.get("stepwise", {})}

    return each(chains, row)
