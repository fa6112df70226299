"""Preference data as features, a batch of R runs, whatever it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from metaopt.problems.reward_model.data.world import Pairs


@dataclass(frozen=True)
class PreferenceFeatures:
    """What reward models on features learn from and are judged by; run i's data is its own.

    Args:
        training: labelled pairs, features (R, n, d); `wrong` where noise was added.
        trusted: of how many of each run's first pairs the right labels are known, >= 1.
        responses: unlabelled responses, k >= 2 to each of P prompts, (R, P, k, d).
        tests: pairs with right labels by name, features (R, n', d).
        seed: what the runs' own randomness is made of: run i's is a function of (seed, i).
        resplit: test pairs for each training pair where runs are splits of one data set; else 0.
    """

    training: Pairs
    trusted: int
    responses: Tensor
    tests: Mapping[str, Pairs]
    seed: int = 0
    resplit: float = 0.0

    def __post_init__(self) -> None:
        runs, count, width = self.training.chosen.shape
        if not 1 <= self.trusted <= count:
            raise ValueError(
                f"trusted must be between 1 and the {count} pairs; got {self.trusted}."
            )
        shape = self.responses.shape
        if self.responses.ndim != 4 or (shape[0], shape[3]) != (runs, width) or shape[2] < 2:
            raise ValueError(
                f"responses must be ({runs}, prompts, k >= 2, {width}); got {tuple(shape)}."
            )
        for name, pairs in self.tests.items():
            if (len(pairs.chosen), pairs.chosen.shape[-1]) != (runs, width):
                raise ValueError(
                    f"test {name} must be ({runs}, pairs, {width}); got "
                    f"{tuple(pairs.chosen.shape)}."
                )

    @property
    def runs(self) -> int:
        """R."""
        return len(self.training.chosen)
