"""Fine-tuning on a query's feedback: its loss, and the step size and number of steps to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from metaopt.engine.adaptation import distance
from metaopt.engine.protocols import Tree
from metaopt.problems.few_shot_ranking.pair_scorer import Scorer

Choice = tuple[float, int]
"""A learning rate and a number of steps."""


class Documents(NamedTuple):
    """Documents of one query, or of several with more axes in front.

    Args:
        x: what the scorer reads, (..., n, F).
        relevant: 1 or 0, (..., n).
        weights: of the documents in the loss, (..., n); they add up to 1.
    """

    x: Tensor
    relevant: Tensor
    weights: Tensor


def relevance_loss(scorer: Scorer, weights: Tree, batch: Documents) -> Tensor:
    """Return l(theta; B), the weighted binary cross-entropy of relevance of each query, (...)."""
    losses = binary_cross_entropy_with_logits(
        scorer(weights, batch.x), batch.relevant, reduction="none"
    )
    return (batch.weights * losses).sum(-1)


def feedback_loss(
    scorer: Scorer, outer: Tree, inner: Tree, batch: Documents, proximal: float
) -> Tensor:
    """Return g = l(theta; feedback) + (proximal / 2) |theta - phi|^2 of each query, (...)."""
    loss = relevance_loss(scorer, inner, batch)
    return loss + proximal / 2 * distance(outer, inner, loss.ndim) if proximal else loss


@dataclass(frozen=True)
class FineTuning:
    """The settings that validation queries choose among, for each k by itself.

    Args:
        rates: learning rates, > 0.
        steps: numbers of steps, >= 0, increasing; 0 ranks by phi itself.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> FineTuning(rates=(0.1, 0.3), steps=(0, 1)).choices
        [(0.1, 0), (0.1, 1), (0.3, 1)]
    """

    rates: Sequence[float] = (0.03, 0.1, 0.3)
    steps: Sequence[int] = (0, 1, 3, 5, 10)

    def __post_init__(self) -> None:
        rates, steps = [*self.rates], [*self.steps]
        if not rates or not all(
            isinstance(r, (int, float)) and 0 < r < float("inf") for r in rates
        ):
            raise ValueError(f"FineTuning needs rates > 0, such as [0.01, 0.1]; got {rates}.")
        whole = all(type(s) is int and s >= 0 for s in steps)
        if not steps or not whole or steps != sorted({*steps}):
            raise ValueError(
                f"FineTuning needs steps to be integers >= 0 that increase, such as [0, 1, 5]; "
                f"got {steps}."
            )

    @property
    def choices(self) -> list[Choice]:
        """All settings; that of no step once."""
        steps = [(rate, count) for rate in self.rates for count in self.steps if count]
        return [(self.rates[0], 0)] * (0 in self.steps) + steps

    def best(self, scores: Mapping[Choice, Tensor]) -> Choice:
        """Return the setting with the largest mean over queries; of equal ones the first."""
        return max(scores, key=lambda choice: float(scores[choice].double().mean()))
