"""Trajectory preference evaluation: does a reward order recorded episodes as they ended?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.reward_design.training import Training, Trajectories, join

Per = Literal["step", "episode"]
Rule = Literal["hardest", "pairs"]


@dataclass(frozen=True, kw_only=True)
class TrajectoryPreference:
    """A test of a reward on recorded successes s and failures f, without training (CARD's TPE).

        rate(tau) = mean reward of a step, or sum over the episode
        share = mean over s of [rate(s) > max over f of rate(f)]      rule "hardest"
              = mean over all pairs (s, f) of [rate(s) > rate(f)]     rule "pairs"

    A reward passes whose share is at least `delta`, and any reward passes while one kind of episode
    is missing. A tie is no preference. A constant added to each step and a positive factor change
    no verdict where rates are means of a step.

    Args:
        delta: least share that passes, in [0, 1].
        rule: "hardest", as in the release, or "pairs", as the paper's text says.
        per: "step" or "episode"; `None` for the environment's: "step" where a success is an end
            that the task has, "episode" where it is to last, since failures are then short, or to
            have a least return, which is a sum.
        store: most recorded episodes, half of each kind, the latest ones, >= 2.

    Reference: Sun et al., Knowledge-Based Systems, 2025, arXiv 2410.14660, section 4.

    Example:
        >>> import torch
        >>> rates, success = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([True, True, False])
        >>> TrajectoryPreference(rule="hardest").share(rates, success)
        0.5
    """

    delta: float = 0.8
    rule: Rule = "hardest"
    per: Per | None = None
    store: int = 200

    def __post_init__(self) -> None:
        check_ranges(self, "0 <= delta <= 1", "store >= 2")
        check_choices(self, rule=get_args(Rule), per=(*get_args(Per), None))

    def share(self, rates: Any, success: Any) -> float:
        """Return which share of successes, or of pairs, is in order; 1 where a kind is missing.

        Args:
            rates: of n episodes, (n), a tensor or an array of numpy.
            success: (n) booleans, likewise.
        """
        won, lost = rates[success], rates[~success]
        if not len(won) or not len(lost):
            return 1.0
        bar = lost.max() if self.rule == "hardest" else lost[:, None]
        above = won > bar
        return float(above.sum()) / float(above.shape[0] * (above.shape[1:] or (1,))[0])

    def latest(self, trainings: Sequence[Training], before: Trajectories | None) -> Trajectories:
        """Return the store: the latest episodes of each kind, at most half of `store` of each.

        Args:
            trainings: whose episodes, in any order.
            before: episodes from elsewhere, older than all of them, or `None`.
        """
        parts = [t.trajectories for t in sorted(trainings, key=lambda t: t.number)]
        episodes = join([*([before] if before is not None else []), *parts])
        kinds = [episodes.success, ~episodes.success]
        index = [torch.nonzero(kind).flatten()[-(self.store // 2) :] for kind in kinds]
        return episodes.select(torch.cat(index).sort().values)


def rates(rewards: Tensor, length: Tensor, per: Per) -> Tensor:
    """Return the mean of a step, or the sum, of rewards (n, T) that are 0 after the end, (n)."""
    # In double precision, in which the rates of a constant are equal whatever the lengths.
    total = rewards.double().sum(1)
    return total / length.clamp(min=1) if per == "step" else total
