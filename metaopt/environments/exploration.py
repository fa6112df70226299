"""How often a learner acts at random."""

from __future__ import annotations

from dataclasses import dataclass

from metaopt.engine.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Probability of a random action: 1, then linearly down to `last`.

    Args:
        random: real steps with random actions only, >= 0; `None` for one phase.
        decay: real steps of the descent, >= 0; `None` for one phase.
        last: probability from then on, in [0, 1].
    """

    random: int | None = None
    decay: int | None = None
    last: float = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, "random >= 0 or null", "decay >= 0 or null", "0 <= last <= 1")

    def __call__(self, step: int, phase: int) -> float:
        """Return the probability after `step` real steps, in phases of `phase`."""
        random = phase if self.random is None else self.random
        decay = phase if self.decay is None else self.decay
        if step < random:
            return 1.0
        share = min(1.0, (step - random) / decay) if decay else 1.0
        return 1.0 + share * (self.last - 1.0)
