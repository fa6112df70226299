"""Agreement of two orders: Spearman's rank correlation with an interval, and of pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from metaopt.metrics.binary import Array
from metaopt.metrics.bootstrap import Ends, clustered_intervals


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of two lists of numbers, (m,); ties share a mean rank.

    NaN where one of the lists holds a single value.

    Raises:
        ValueError: other shapes, fewer than two pairs, or a number that is not finite.
    """
    x, y = _pairs(a, b)
    return float(_correlations(x, y, np.ones((1, len(x))))[0])


def spearman_interval(a: ArrayLike, b: ArrayLike, resamples: int = 2_000, seed: int = 0) -> Ends:
    """Return the 95 % percentile bootstrap interval of `spearman`, which resamples pairs."""
    x, y = _pairs(a, b)
    intervals = clustered_intervals(
        lambda weights: {"rho": _correlations(x, y, weights)}, np.arange(len(x)), resamples, seed
    )
    return intervals["rho"]


def pairwise_agreement(scores: ArrayLike, truth: ArrayLike) -> float | None:
    """Return the share of pairs of examples that two lists of n numbers order alike.

        mean over pairs with truth_i > truth_j of 1[score_i > score_j] + 1[score_i = score_j] / 2

    It is the AUROC for a truth of two values, and 0.5 for scores that say nothing. `None` where all
    of the truth is one value, or there is none.

    Raises:
        ValueError: lists of other shapes, or a number that is not finite.

    Cost: n^2 comparisons.
    """
    s, t = np.asarray(scores, float), np.asarray(truth, float)
    if s.ndim != 1 or s.shape != t.shape or not (np.isfinite(s).all() and np.isfinite(t).all()):
        raise ValueError(
            f"pairwise_agreement needs two lists of the same length of finite numbers; got shapes "
            f"{s.shape} and {t.shape}."
        )
    above = t[:, None] > t[None]
    if not above.any():
        return None
    sign = np.sign(s[:, None] - s[None])[above]
    return float((1 + sign).mean() / 2)


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            f"spearman needs two lists of the same length >= 2; got shapes {x.shape} and {y.shape}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("spearman needs finite numbers.")
    return x, y


def _correlations(x: Array, y: Array, times: Array) -> Array:
    """Return the correlation in each resample, (resamples,).

    Args:
        times: how often each pair is in a resample, (resamples, m).
    """
    a, b = _ranks(x, times), _ranks(y, times)
    total = times.sum(1, keepdims=True)
    a = a - (times * a).sum(1, keepdims=True) / total
    b = b - (times * b).sum(1, keepdims=True) / total
    product = (times * a * b).sum(1)
    size = np.sqrt((times * a * a).sum(1) * (times * b * b).sum(1))
    rho: Array = np.divide(product, size, out=np.full(len(times), np.nan), where=size > 0)
    return rho


def _ranks(values: Array, times: Array) -> Array:
    """Return the mean ranks of values in resamples, (resamples, m)."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(times[:, order], first, axis=1)
    # The ranks of a group of c values above which C others rank lower are C + 1 to C + c.
    ranks: Array = (sizes.cumsum(1) - (sizes - 1) / 2)[:, group]
    return ranks
