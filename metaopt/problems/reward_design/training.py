"""What a training under a designed reward leaves behind: a curve and trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.engine import tree

MOST_POINTS = 10
"""Most points of a training's curve."""

GOOD = 0.5
"""A reward is good whose success is above this."""


@tree.tagged("reward_trajectories")
class Trajectories(NamedTuple):
    """n episodes of at most T steps, in the units of the environment.

    Args:
        observations: (n, T + 1, d) float16, or float32 where they do not fit; row 0 is the start,
            row t what follows step t. Rows after the end repeat the last observation.
        actions: (n, T) int16, or (n, T, a) where they are vectors, 0 after the end.
        length: steps of each episode, (n) integers.
        success: what the environment says of each episode, (n) booleans; never the reward's word.
        terminated: whether the task ended the episode, and not its time limit, (n) booleans.
    """

    observations: Tensor
    actions: Tensor
    length: Tensor
    success: Tensor
    terminated: Tensor

    def select(self, index: Tensor) -> Trajectories:
        """Return the episodes at `index`, integers or a mask."""
        return Trajectories(*(field[index] for field in self))


@tree.tagged("reward_training")
class Training(NamedTuple):
    """One training under one reward, its inner seeds together.

    `Feedback.artifacts` of `RewardDesign` is a list of them, one for each reward of the outer
    variable.

    Args:
        reward: the expression's text.
        number: outer step of the training, from 1.
        success: share of the last greedy episodes that succeed, in [0, 1], of each inner seed.
        curve: at most `MOST_POINTS` points over the training, means over inner seeds, by name:
            "steps" (real steps so far), "success" and "length" (of greedy episodes), "return" (sum
            of the designed reward over one of them), and "term <name>" for the part of the return
            that each term of the reward contributes, its weight included.
        trajectories: some of the greedy episodes at the end, half of each kind where there are.
    """

    reward: str
    number: int
    success: list[float]
    curve: dict[str, list[float]]
    trajectories: Trajectories

    @property
    def mean_success(self) -> float:
        """The mean over inner seeds."""
        return fmean(self.success)

    @property
    def terms(self) -> dict[str, list[float]]:
        """The curve of each term by the term's name."""
        start = "term "
        return {k.removeprefix(start): v for k, v in self.curve.items() if k.startswith(start)}


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the episodes of all parts, at least one, in order."""
    return Trajectories(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
