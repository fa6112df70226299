"""Features of steps in deviations from their mean on the training chains."""

from __future__ import annotations

from torch import Tensor

FARTHEST = 10.0
"""Deviations from the mean at which features end: what training knows by one question or two has
deviations so small that a question without it would be hundreds away."""


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (1 where there is none) of each column."""
    deviation = features.std(0, correction=0)
    return features.mean(0), deviation.where(deviation > 1e-6, deviation.new_ones(()))


def standardized(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return (features - mean) / deviation, clipped to [-10, 10]."""
    return ((features - mean) / deviation).clamp_(-FARTHEST, FARTHEST)
