"""Several reward models as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.nn.stacked_features import FeatureReward

CENTRE = "centre"


def combine(rewards: Tensor, how: str = "mean", deviations: float = 1.0) -> Tensor:
    """Return one reward of M, (R, ...).

    mean: their mean. worst: the smallest. lower: mean - k std, with the population standard
    deviation. The last two shun what the members disagree about. Bradley and Terry's loss leaves a
    constant free in each member, so centre them first; the mean does not depend on it.

    Args:
        rewards: (R, M, ...).
        how: mean, worst or lower.
        deviations: k >= 0, of lower.

    Raises:
        ValueError: another name, or k < 0.

    References: Coste et al., Reward model ensembles help mitigate overoptimization, ICLR 2024.
    """
    if how not in ("mean", "worst", "lower") or not deviations >= 0:
        raise ValueError(
            f"an ensemble is combined by mean, worst or lower with deviations >= 0; got {how!r} "
            f"and {deviations}."
        )
    if how == "worst":
        return rewards.amin(1)
    mean = rewards.mean(1)
    return mean if how == "mean" else mean - deviations * rewards.std(1, correction=0)


@dataclass(frozen=True)
class Ensemble:
    """R ensembles of M reward models on features, each used as one reward model.

    Members are trained as R M models by
    `metaopt.problems.reward_model.model.preference_training.fit`, with other initial weights and
    another order of the pairs each.

    Args:
        model: the members' architecture.
        members: M >= 1.
        how, deviations: see `combine`.

    Raises:
        ValueError: no member, or an unknown combination.
    """

    model: FeatureReward
    members: int = 5
    how: str = "mean"
    deviations: float = 1.0

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"an ensemble needs members >= 1; got {self.members}.")
        combine(torch.zeros(1, 1), self.how, self.deviations)

    def init(self, generators: Sequence[Generator]) -> dict[str, Tensor]:
        """Return parameters with a leading axis R M, run i's members from generator i alone."""
        return self.model.init([g for g in generators for _ in range(self.members)])

    @torch.no_grad()
    def centred(self, params: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Return the parameters with what makes each member's mean reward of x zero.

        Args:
            params: of the members, with a leading axis R M.
            x: features (R, n, d) such as those of the training pairs, or (n, d).
        """
        mean = self._each(params, x).flatten(2).mean(-1)
        return {**params, CENTRE: mean.flatten()}

    def rewards(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the rewards (R, ...) of features (R, ..., d), or (R, n) of (n, d).

        Raises:
            ValueError: worst or lower of members that are not centred.
        """
        each = self._each(params, x)
        if CENTRE in params:
            each = each - params[CENTRE].view(*each.shape[:2], *[1] * (each.ndim - 2))
        elif self.how != "mean":
            raise ValueError(
                f"an ensemble's {self.how} compares its members' rewards, which have a constant "
                f"each; centre them with `centred` first."
            )
        return combine(each, self.how, self.deviations)

    def _each(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if x.ndim > 2:
            x = x.repeat_interleave(self.members, 0)
        found = self.model.rewards(params, x)
        return found.view(-1, self.members, *found.shape[1:])
