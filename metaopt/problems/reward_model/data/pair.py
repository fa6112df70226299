"""Preference pairs: what one is, splits of them, and label noise that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHOWN = 3


class Message(NamedTuple):
    """One turn of a conversation.

    Args:
        role: system, user, assistant, ...
        content: what was said.
    """

    role: str
    content: str


Text = str | tuple[Message, ...]
"""Plain text, or a conversation."""


class Pair(NamedTuple):
    """Two answers to one prompt, the better one first.

    All three texts are plain, and prompt + answer is what a model reads; or all three are
    conversations.

    Args:
        prompt: what was answered; "" or () where the answers have nothing in common.
        chosen: the answer that was preferred.
        rejected: the other one.
        margin: what a reward model should put between them, r(chosen) - r(rejected); `None` where
            the source has no such column.
        strength: how sure the preference is, positive where `chosen` is the better answer; of
            annotators, (votes for chosen - votes for rejected) / annotators, in [-1, 1], so that
            (1 + strength) / 2 is a soft label; of another source, what its column says; `None`
            where it is not known.
        section: part of a benchmark.
        row: its number in the source, from 1; in a file of JSON lines, the line.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None
    strength: float | None = None
    section: str = ""
    row: int = 0


class Malformed(NamedTuple):
    """A row that is not a preference.

    Args:
        source: file or data set.
        row: its number, from 1; in a file of JSON lines, the line.
        reason: what is wrong with it, without quoting it.
    """

    source: str
    row: int
    reason: str


@dataclass(frozen=True)
class Preferences:
    """What a source holds. Every row makes pairs (several for several answers), a tie or nothing.

    Args:
        pairs: the preferences, in the order of the source.
        ties: pairs without a majority, or with one for "equally good"; the answers are in the
            order of the source, and `strength` is positive where the first had more votes.
        malformed: rows that were left out.
        cast: rows (source, row) whose answer was a number or a boolean and was cast to text.
        source: where they come from.
        rows: number of rows that were read.
    """

    pairs: tuple[Pair, ...]
    ties: tuple[Pair, ...] = ()
    malformed: tuple[Malformed, ...] = ()
    cast: tuple[tuple[str, int], ...] = ()
    source: str = ""
    rows: int = 0

    def report(self) -> str:
        """Return the counts, and the numbers of the malformed rows by reason; never their text."""
        words = f"{self.source}: {self.rows} rows, {len(self.pairs)} pairs, {len(self.ties)} ties, "
        words += f"{len(self.malformed)} malformed, {len(self.cast)} cast to text"
        reasons: dict[tuple[str, str], list[int]] = {}
        for source, row, reason in self.malformed:
            reasons.setdefault((source, reason), []).append(row)
        for (source, reason), rows in reasons.items():
            more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
            listed = ", ".join(map(str, rows[:SHOWN]))
            words += f"\n  {source}: {reason}: {len(rows)} in row {listed}{more}"
        return words


def exchanged(pair: Pair) -> Pair:
    """Return the pair with its answers exchanged; margin and strength stay."""
    return pair._replace(chosen=pair.rejected, rejected=pair.chosen)


def flips(count: int, rate: float, seed: int) -> tuple[int, ...]:
    """Return which of `count` labels are wrong: round(rate count) indices, ascending.

    With one seed a higher rate flips a superset.

    Args:
        count: number of pairs, >= 0.
        rate: share of wrong labels, in [0, 1].
        seed: another seed flips other labels.

    Raises:
        ValueError: a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"label noise needs a rate in [0, 1]; got {rate}.")
    # A prefix of one order, so that a higher rate flips a superset.
    order = np.random.default_rng(seed).permutation(count)
    return tuple(sorted(order[: round(rate * count)].tolist()))


def with_noise(pairs: Sequence[Pair], rate: float, seed: int) -> tuple[Pair, ...]:
    """Return the pairs with the answers of `flips(len(pairs), rate, seed)` exchanged.

    Margins and strengths stay: a wrong label whose margin has the other sign would be known to be
    wrong.
    """
    wrong = set(flips(len(pairs), rate, seed))
    return tuple(exchanged(pair) if i in wrong else pair for i, pair in enumerate(pairs))


def split(
    pairs: Sequence[Pair], training: int | float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the indices of the training pairs and of the others, both in random order.

    Pairs of one prompt (where there is one), but for spaces at its ends, stay on one side. The
    training side has the number that was asked for wherever the sizes of those groups allow it, and
    never more.

    Args:
        pairs: the pairs.
        training: how many pairs train, an integer in (0, len(pairs)); or a share in (0, 1).
        seed: another seed is another split.

    Raises:
        ValueError: either side would be empty.
    """
    share = isinstance(training, float)
    legal = 0 < training < (1 if share else len(pairs))
    count = round(training * len(pairs)) if legal and share else int(training) if legal else 0
    if not 0 < count < len(pairs):
        raise ValueError(
            f"a split of {len(pairs)} pairs needs a share in (0, 1) or a number in "
            f"(0, {len(pairs)}) that leaves a pair on either side; got training={training!r}."
        )
    groups: dict[Text | int, list[int]] = {}
    for i, pair in enumerate(pairs):
        asked = pair.prompt.strip() if isinstance(pair.prompt, str) else pair.prompt
        groups.setdefault(asked or i, []).append(i)  # pairs without a prompt stand alone
    together = list(groups.values())
    sides: tuple[list[int], list[int]] = ([], [])
    for g in np.random.default_rng(seed).permutation(len(together)).tolist():
        # On the training side unless it overflows there; smaller groups may still fit later.
        sides[len(sides[0]) + len(together[g]) > count].extend(together[g])
    if not (sides[0] and sides[1]):
        raise ValueError(
            f"training={training!r} leaves one side empty, because pairs of one prompt stay "
            f"together and {max(map(len, together))} of {len(pairs)} share one."
        )
    return tuple(sides[0]), tuple(sides[1])
