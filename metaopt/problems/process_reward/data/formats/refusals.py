"""What cannot be read or written, listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from metaopt.problems.process_reward.data.formats.chain import Chain

SHOWN = 100

T = TypeVar("T")


def listing(found: Sequence[str]) -> str:
    """Return one line for each, the first 100 of them, and how many more there are."""
    more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "\n  ".join(["", *found[:SHOWN]]) + more


def each(chains: Sequence[Chain], row: Callable[[Chain], T]) -> list[T]:
    """Return the row of every chain.

    Raises:
        ValueError: lists every chain, by position, that has no row, with the count.
    """
    rows: list[T] = []
    wrong: list[str] = []
    for number, chain in enumerate(chains):
        try:
            rows.append(row(chain))
        except ValueError as reason:
            wrong.append(f"chain {number} {chain.qid!r}: {reason}")
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(chains)} chains cannot be written:{listing(wrong)}")
    return rows
