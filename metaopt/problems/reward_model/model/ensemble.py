"""One reward of several reward models."""

from __future__ import annotations

from torch import Tensor

AGGREGATES = ("mean", "worst", "lower")


def combine(rewards: Tensor, how: str = "mean") -> Tensor:
    """Return one reward of M, (R, ...).

    mean: their mean. worst: the smallest. lower: mean - std, with the population standard
    deviation. The last two shun what the members disagree about. Bradley and Terry's loss leaves a
    constant free in each member, so centre them first; the mean needs no centring.

    Args:
        rewards: (R, M, ...).
        how: one of `AGGREGATES`.

    References: Coste et al., Reward model ensembles help mitigate overoptimization, ICLR 2024.
    """
    if how == "worst":
        return rewards.amin(1)
    mean = rewards.mean(1)
    return mean if how == "mean" else mean - rewards.std(1, correction=0)
