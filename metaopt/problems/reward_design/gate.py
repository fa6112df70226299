"""The test of rewards on what has been recorded so far, before any training under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.returns import step_rewards
from metaopt.problems.reward_design.tpe import Per, TrajectoryPreference, rates
from metaopt.problems.reward_design.training import GOOD, Training, Trajectories
from metaopt.problems.reward_design.variables import Variables


@dataclass(frozen=True)
class Verdict:
    """What the test says of a reward.

    Args:
        share: of successes, or of pairs, that the reward orders as they ended.
        delta: least share that passes.
        rates: what the reward gives for each recorded episode, (n).
        per: in a step or in all.
        store: these episodes.
    """

    share: float
    delta: float
    rates: Tensor
    per: Per
    store: Trajectories

    @property
    def passed(self) -> bool:
        """Whether the reward is worth a training."""
        return self.share >= self.delta


@dataclass(frozen=True)
class Gate:
    """Trajectory preference evaluation on a store of recorded episodes.

    Args:
        tpe: the test.
        variables: of the environment.
        per: what is compared, means of a step or sums over an episode.
        before: episodes from elsewhere that were recorded before the first training, or `None`.
    """

    tpe: TrajectoryPreference
    variables: Variables
    per: Per
    before: Trajectories | None = None

    def __call__(self, reward: Expression, trainings: Sequence[Training]) -> Verdict | None:
        """Return the verdict on a reward after some trainings; `None` where nothing is recorded."""
        if not trainings and self.before is None:
            return None
        store = self.tpe.latest(trainings, self.before)
        rated = rates(step_rewards(reward, self.variables, store), store.length, self.per)
        share = self.tpe.share(rated, store.success)
        return Verdict(share, self.tpe.delta, rated, self.per, store)


def precision(history: Sequence[Mapping[str, Any]], demonstrated: bool) -> float | None:
    """Return the share of good rewards among those that were trained under since they passed.

    Rewards that passed while one kind of episode was missing, as any does, are left out.

    Args:
        history: of `RewardDesign`: entries with number, success, filed and passed, in order.
        demonstrated: whether episodes of both kinds were recorded before the first training.

    Returns:
        A number in [0, 1], or `None` where no such reward was trained under.
    """
    good = []
    for entry in history:
        if not entry["filed"] or not entry["passed"]:
            continue
        before = [s for e in history if e["number"] < entry["number"] for s in e["success"]]
        if demonstrated or (before and max(before) > 0 and min(before) < 1):
            good.append(fmean(entry["success"]) > GOOD)
    return fmean(good) if good else None
