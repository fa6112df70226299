"""One schema for a chain of steps with what is known about each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metaopt.data.row_texts import flag, text
from metaopt.problems.process_reward.data.formats.columns import (
    count,
    listed,
    optional,
    share,
    texts,
)


@dataclass(frozen=True)
class Chain:
    """A question, the steps of one answer to it, and what is known about them.

    Args:
        prompt: the question.
        steps: the steps' texts, in order; none is legal here and refused by `meta_set`.
        labels: one per step, the probability in [0, 1] that the chain is right up to and with that
            step; `None` where nobody knows. After the first wrong step that is the rule. Left out,
            none is known.
        successes: rollouts from each step that ended right, or `None`; left out, no counts.
        rollouts: rollouts from each step, or `None`; left out, no counts.
        outcome: whether the final answer is right; `None` where that is not known.
        qid: the source's name for the question (for ProcessBench, for the chain).
        domain: the source of the chain.
        images: paths of the question's images.
        policy: who wrote the chain; "" where that is not known.
        temperature: at which it was sampled; `None` where that is not known.
        file, row: where it was read, and its number there from 1; "" and 0 where it is made up or
            joined from several rows. Chains that differ in nothing else are equal.

    Raises:
        ValueError: lengths that differ, a label outside [0, 1], or counts that contradict.

    Example:
        >>> chain = Chain("1 + 2 + 3?", ("1 + 2 = 3.", "3 + 3 = 7."), (1.0, 0.0), outcome=False)
        >>> chain.mask
        (True, True)
    """

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...] = ()
    successes: tuple[int | None, ...] = ()
    rollouts: tuple[int | None, ...] = ()
    outcome: bool | None = None
    qid: str = ""
    domain: str = ""
    images: tuple[str, ...] = ()
    policy: str = ""
    temperature: float | None = None
    file: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        count = len(self.steps)
        if not self.labels:
            object.__setattr__(self, "labels", (None,) * count)
        for name in ("labels", "successes", "rollouts"):
            length = len(getattr(self, name))
            if length != count and (length or name == "labels"):
                raise ValueError(f"{name} must be one per step; got {length} for {count} steps")
        if len(self.successes) != len(self.rollouts):
            raise ValueError("successes and rollouts must be given together")
        for label in self.labels:
            if label is not None and not 0 <= label <= 1:
                raise ValueError(f"a label must be in [0, 1] or null; got {label}")
        for right, tried in zip(self.successes, self.rollouts, strict=True):
            if (right is None) != (tried is None):
                raise ValueError("a step needs both its successes and its rollouts, or neither")
            if right is not None and tried is not None and not 0 <= right <= tried:
                raise ValueError(f"successes must be 0 to rollouts; got {right} of {tried}")

    @property
    def mask(self) -> tuple[bool, ...]:
        """Which steps have a label."""
        return tuple(label is not None for label in self.labels)


def refuse(part: str, lacking: Iterable[bool], what: str, advice: str = "") -> None:
    """Raise a `ValueError` where chains lack something; it counts them and lists the first.

    Args:
        part: what the chains are for.
        lacking: of each chain whether it does.
        what: what they lack.
        advice: what to do about it.
    """
    flags = list(lacking)
    if any(flags):
        lacks = counted([i for i, flag in enumerate(flags) if flag], len(flags), f"have no {what}")
        raise ValueError(" ".join(filter(None, [f"{part}: {lacks}.", advice])))


def counted(positions: Sequence[int], total: int, what: str) -> str:
    """Return how many of all chains do what is said, and the places of the first ten."""
    places = ", ".join([*map(str, positions[:10]), *(["..."] if len(positions) > 10 else [])])
    return f"{len(positions)} of {total} chains {what}: chains {places}"


def harden(chain: Chain, threshold: float = 0.0) -> Chain:
    """Return the chain with labels 1 where they exceed the threshold and 0 elsewhere.

    At 0 a step is right if any rollout from it was (the hard estimate of Math-Shepherd, Wang et
    al., ACL 2024). Unknown labels stay unknown; counts are kept.
    """
    hard = tuple(None if x is None else float(x > threshold) for x in chain.labels)
    return replace(chain, labels=hard)


def truncate(chain: Chain) -> Chain:
    """Return the chain up to its first step without a label, that step excluded.

    The outcome belongs to the whole chain: a chain that becomes shorter loses it.
    """
    if all(chain.mask):
        return chain
    end = chain.mask.index(False)
    return replace(
        chain,
        steps=chain.steps[:end],
        labels=chain.labels[:end],
        successes=chain.successes[:end],
        rollouts=chain.rollouts[:end],
        outcome=None,
    )


def from_chain(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of this project's own schema; see `to_chain`.

    Raises:
        ValueError: says which column is malformed.
    """
    steps = texts(row, "steps")
    temperature = row.get("temperature")
    if temperature is not None and not isinstance(temperature, (int, float)):
        raise ValueError(f"'temperature' must be a number or null; got {temperature!r}")
    return Chain(
        text(row, "prompt"),
        steps,
        tuple(share(x, "step_label") for x in listed(row, "step_label", ())),
        tuple(count(x, "step_success") for x in listed(row, "step_success", ())),
        tuple(count(x, "step_rollouts") for x in listed(row, "step_rollouts", ())),
        flag(row, "outcome", optional=True),
        optional(row, "qid"),
        optional(row, "domain"),
        texts(row, "images", ()),
        optional(row, "policy"),
        temperature,
    )


def to_chain(chain: Chain) -> dict[str, Any]:
    """Return the row of a chain, with every field of the schema."""
    return {
        "qid": chain.qid,
        "domain": chain.domain,
        "prompt": chain.prompt,
        "images": list(chain.images),
        "steps": list(chain.steps),
        "step_success": list(chain.successes),
        "step_rollouts": list(chain.rollouts),
        "step_label": list(chain.labels),
        "outcome": None if chain.outcome is None else int(chain.outcome),
        "policy": chain.policy,
        "temperature": chain.temperature,
    }
