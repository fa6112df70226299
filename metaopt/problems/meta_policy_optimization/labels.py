"""What labels are good for, where there are any: a gate, and weights fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from metaopt.metrics.rank_correlation import pairwise_agreement

RIDGE = 1.0
"""Penalty on the squares of the fitted weights, against squared errors summed over the labels."""


def agreement(scores: Sequence[float | None], truth: Sequence[float]) -> float | None:
    """Return the pairwise agreement of the scores that there are with the truth."""
    known = [(s, t) for s, t in zip(scores, truth, strict=True) if s is not None]
    return pairwise_agreement(*zip(*known, strict=True)) if known else None


def ridge(
    readings: Sequence[Mapping[str, float] | None], truth: Sequence[float], criteria: Sequence[str]
) -> dict[str, float]:
    """Return weights w of the criteria that minimise sum_i (y_i - b - w . x_i)^2 + ||w||^2.

    x are the judge's readings of an example, `None` without any; b is not penalised.
    """
    known = [(r, t) for r, t in zip(readings, truth, strict=True) if r is not None]
    x = np.array([[reading[name] for name in criteria] for reading, _ in known])
    y = np.array([t for _, t in known])
    x, y = x - x.mean(0), y - y.mean()
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(len(criteria)), x.T @ y)
    return dict(zip(criteria, weights.tolist(), strict=True))
