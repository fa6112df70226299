"""What a table says about its seeds: means, intervals and paired comparisons.

Every function takes plain sequences of numbers, one a seed, and nothing here knows of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Statistic = Callable[..., Any]


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; the ends are NaN when n < 2."""

    estimate: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width, for a plus-minus sign."""
        return (self.high - self.low) / 2


class Paired(NamedTuple):
    """How `a` differs from `b` on the same seeds.

    `difference` is the mean of a - b with its t-interval, `wins` counts a > b, `losses` a < b, and
    each `p` is two-sided: Student's paired t, Wilcoxon's signed ranks, the sign test without ties.
    """

    difference: Interval
    wins: int
    losses: int
    n: int
    p_t: float
    p_wilcoxon: float
    p_sign: float


def standard_error(values: ArrayLike) -> float:
    """Return sd / sqrt(n) with the n - 1 standard deviation; NaN when n < 2."""
    x = _sample(values)
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan


def t_interval(values: ArrayLike, level: float = 0.95, resplit: float = 0.0) -> Interval:
    """Return the mean and mean -+ t se, with t the quantile of Student's t with n - 1 degrees.

    Random splits of one data set share most of their rows, and their values are no independent
    sample: with rho = `resplit`, se^2 = (1 / n + rho) s^2, which no number of splits brings to 0.

    Args:
        values: n numbers, one a seed.
        level: coverage, in (0, 1).
        resplit: test rows for each training row where seeds are splits of one data set, >= 0;
            0 where they are independent.

    Raises:
        ValueError: no values, a table instead of a list, or a level outside (0, 1).

    Reference: Nadeau and Bengio, Inference for the generalization error, Machine Learning, 2003.
    """
    x = _sample(values)
    _check_level(level)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan)
    error = standard_error(x) * math.sqrt(1 + len(x) * resplit)
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def t_intervals(table: ArrayLike, level: float = 0.95) -> tuple[Any, Any, Any]:
    """Return the means and the ends of the t-intervals of each column, without its NaNs.

    Args:
        table: (seeds, points); NaN where a seed has no value.
        level: coverage, in (0, 1).

    Returns:
        Three arrays of (points,); an end is NaN where a column has fewer than two values, and the
        mean too where it has none.
    """
    x = np.asarray(table, dtype=float)
    _check_level(level)
    known = np.isfinite(x)
    n = known.sum(axis=0)
    mean = np.where(n > 0, np.where(known, x, 0).sum(axis=0) / np.maximum(n, 1), np.nan)
    squares = np.where(known, (x - mean) ** 2, 0).sum(axis=0)
    free = np.maximum(n - 1, 1)
    half = stats.t.ppf((1 + level) / 2, free) * np.sqrt(squares / free / np.maximum(n, 1))
    half = np.where(n > 1, half, np.nan)
    return mean, mean - half, mean + half


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = np.mean,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return `statistic` of the values and its percentile bootstrap interval.

    Args:
        values: n numbers, one a seed.
        statistic: takes an array and `axis`, such as `numpy.median`.
        level: coverage, in (0, 1).
        resamples: number of resamples, >= 1; memory is resamples x n numbers.
        seed: seed of the resampling: the same interval every time.

    Raises:
        ValueError: no values, a level outside (0, 1) or resamples < 1.
    """
    x = _sample(values)
    _check_level(level)
    draw = _draw(resamples, seed)
    drawn = statistic(x[draw.integers(len(x), size=(resamples, len(x)))], axis=1)
    return _percentiles(float(statistic(x, axis=0)), drawn, level, len(x))


def iqm(scores: ArrayLike) -> float:
    """Return the interquartile mean: the mean of the middle half of all scores.

    A quarter of the numbers, rounded down, is left out at either end; runs and tasks are pooled.

    References: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice", NeurIPS 2021.
    """
    return float(stats.trim_mean(np.asarray(scores, dtype=float), 0.25, axis=None))


def iqm_interval(
    scores: ArrayLike, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Return the interquartile mean and its stratified percentile bootstrap interval.

    Stratified: each resample draws runs with replacement within every task on its own, so that
    each task keeps its weight.

    Args:
        scores: (runs, tasks).
        level: coverage, in (0, 1).
        resamples: number of resamples, >= 1.
        seed: seed of the resampling.

    Raises:
        ValueError: scores that are not a non-empty (runs, tasks) table, or as above.

    References: Agarwal et al., NeurIPS 2021.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"scores must be a (runs, tasks) table; got the shape {table.shape}.")
    _check_level(level)
    draw = _draw(resamples, seed)
    tasks = np.arange(table.shape[1])
    drawn = [
        iqm(table[draw.integers(len(table), size=table.shape), tasks]) for _ in range(resamples)
    ]
    return _percentiles(iqm(table), np.asarray(drawn), level, len(table))


def paired(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, resplit: float = 0.0
) -> Paired:
    """Compare two methods seed by seed.

    Args:
        a, b: n numbers each; a[i] and b[i] come from the same seed.
        level: coverage of the difference's interval, in (0, 1).
        resplit: as for `t_interval`; it widens the interval and p_t, not the other two tests.

    Raises:
        ValueError: lengths that differ, or no values.
    """
    if len(a) != len(b):
        raise ValueError(f"paired needs one value a seed on both sides; got {len(a)} and {len(b)}.")
    gap = _sample(a) - _sample(b)
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    sign = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    interval, p = t_interval(gap, level, resplit), _p_t(gap, resplit)
    return Paired(interval, wins, losses, len(gap), p, _p_wilcoxon(gap), sign)


def _p_t(gap: NDArray[np.float64], resplit: float) -> float:
    error = standard_error(gap) * math.sqrt(1 + len(gap) * resplit)
    if math.isnan(error) or error <= 1e-12 * np.abs(gap).max():  # equal but for round-off
        return math.nan
    return float(2 * stats.t.sf(abs(gap.mean() / error), len(gap) - 1))


def _p_wilcoxon(gap: NDArray[np.float64]) -> float:
    return float(stats.wilcoxon(gap).pvalue) if gap.any() else 1.0


def _percentiles(estimate: float, drawn: Any, level: float, n: int) -> Interval:
    if n < 2:
        return Interval(estimate, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"a sample must be a non-empty list of numbers; got the shape {x.shape}.")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}.")


def _draw(resamples: int, seed: int) -> np.random.Generator:
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1; got {resamples}.")
    return np.random.default_rng(seed)
