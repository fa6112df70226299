"""Numbers of weighted binary rows, and their bootstrap by cluster.

A resample is a row of a table of weights, (resamples, rows), that says how often each row was
drawn. Every number here is a function of such a table, so an estimate (all weights 1) and its
interval come from the same formula; NaN where a resample does not define it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Ends = tuple[float | None, float | None]

BLOCK = 2_000_000
"""Weights held at once."""


def ratio(a: Array, b: Array) -> Array:
    """Return a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b != 0)


def auroc(weights: Array, scores: Array, outcomes: Array) -> Array:
    """Return the Mann-Whitney probability that a success outscores a failure; ties count half."""
    if len(scores) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    w, y = weights[:, order], outcomes[order]
    positive, negative = (np.add.reduceat(w * v, starts, axis=1) for v in (y, 1 - y))
    below = np.cumsum(negative, axis=1) - negative / 2
    return ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def brier(weights: Array, probability: Array, outcomes: Array) -> Array:
    """Return the mean squared error of the probabilities."""
    return ratio(weights @ (probability - outcomes) ** 2, weights.sum(1))


def brier_skill(weights: Array, probability: Array, outcomes: Array) -> Array:
    """Return 1 - Brier / (base rate (1 - base rate))."""
    base = ratio(weights @ outcomes, weights.sum(1))
    return 1 - ratio(brier(weights, probability, outcomes), base * (1 - base))


def counts(weights: Array, decided: Array, outcomes: Array) -> tuple[Array, Array, Array, Array]:
    """Return tn, fp, fn, tp."""
    yes, no = weights * decided, weights * (1 - decided)
    return no @ (1 - outcomes), yes @ (1 - outcomes), no @ outcomes, yes @ outcomes


def kappa(tn: Array, fp: Array, fn: Array, tp: Array) -> Array:
    """Return Cohen's kappa."""
    return ratio(2 * (tp * tn - fn * fp), (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn))


def rogan_gladen(apparent: Array, sensitivity: Array, specificity: Array) -> Array:
    """Return the corrected rate in [0, 1]; NaN where sensitivity + specificity <= 1."""
    j = sensitivity + specificity - 1
    return np.clip(ratio(apparent + specificity - 1, np.where(j > 1e-12, j, 0)), 0, 1)


def cluster_weights(queries: ArrayLike, resamples: int = 2_000, seed: int = 0) -> Iterator[Array]:
    """Yield tables (resamples of a block, rows): how often each row counts in a resample.

    A resample draws as many queries as there are, with replacement, and takes all their rows.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1; got {resamples}.")
    _, query = np.unique(np.asarray(queries), return_inverse=True)
    groups = int(query.max()) + 1
    draw = np.random.default_rng(seed)
    block = max(1, BLOCK // len(query))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        times = draw.multinomial(groups, np.full(groups, 1 / groups), size=size)
        yield times[:, query].astype(float)


def clustered_intervals(
    statistics: Callable[[Array], Mapping[str, Array]],
    queries: ArrayLike,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> dict[str, Ends]:
    """Return percentile bootstrap intervals that resample queries.

    A resample in which a number is not defined (NaN) counts against both ends; an end is `None`
    where that leaves no finite one, and where there are fewer than two queries.

    Args:
        statistics: from weights (resamples, rows) to named numbers (resamples,).
        queries: one label a row; equal labels are drawn together.
        level: coverage, in (0, 1).
        resamples: number of resamples.
        seed: the same intervals every time.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}.")
    labels = np.asarray(queries)
    if len(np.unique(labels)) < 2:
        return dict.fromkeys(statistics(np.ones((1, len(labels)))), (None, None))
    blocks = [statistics(weights) for weights in cluster_weights(labels, resamples, seed)]
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: _ends(values, level) for name, values in drawn.items()}


def _ends(drawn: Array, level: float) -> Ends:
    known = ~np.isnan(drawn)
    tail = (1 - level) / 2 * (len(drawn) - 1)
    low = np.sort(np.where(known, drawn, -np.inf))[math.floor(tail)]
    high = np.sort(np.where(known, drawn, np.inf))[len(drawn) - 1 - math.floor(tail)]
    return (
        float(low) if np.isfinite(low) else None,
        float(high) if np.isfinite(high) else None,
    )
