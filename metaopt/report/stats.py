"""What a table says about its seeds: means, intervals and paired comparisons.

Every function takes plain sequences of numbers, one per seed, and nothing here knows of runs.
scipy.stats is imported where it is used: it takes longer to import than most reports to write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[..., Any]

RESAMPLES = 10_000


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


def t_interval(values: ArrayLike, level: float = 0.95, resplit: float = 0.0) -> Interval:
    """Return the mean and mean -+ t se, with t the quantile of Student's t with n - 1 degrees.

    Random splits of one data set share most of their examples: their values are not independent
    sample: with rho = `resplit`, se^2 = (1 / n + rho) s^2, which no number of splits brings to 0.

    Args:
        values: n numbers, one per seed.
        level: coverage, in (0, 1).
        resplit: test examples for each training example where seeds are splits of one data set,
            >= 0; 0 where they are independent.

    Raises:
        ValueError: no values, a table instead of a list, or a level outside (0, 1).

    Reference: Nadeau and Bengio, Inference for the generalization error, Machine Learning, 2003.
    """
    ends = t_intervals(_sample(values)[:, None], level, resplit)
    return Interval(*(float(column[0]) for column in ends))


def t_intervals(
    table: ArrayLike, level: float = 0.95, resplit: float = 0.0
) -> tuple[Any, Any, Any]:
    """Return the means and the ends of the t-intervals of each column, without its NaNs.

    Args:
        table: (seeds, points); NaN where a seed has no value.
        level: coverage, in (0, 1).
        resplit: as for `t_interval`.

    Returns:
        Three arrays of (points,); an end is NaN where a column has fewer than two values, and the
        mean too where it has none.
    """
    from scipy import stats

    x = np.asarray(table, dtype=float)
    _check_level(level)
    known = np.isfinite(x)
    n = known.sum(axis=0)
    mean = np.where(n > 0, np.where(known, x, 0).sum(axis=0) / np.maximum(n, 1), np.nan)
    squares = np.where(known, (x - mean) ** 2, 0).sum(axis=0)
    free = np.maximum(n - 1, 1)
    error = np.sqrt(squares / free * (1 / np.maximum(n, 1) + resplit))
    half = stats.t.ppf((1 + level) / 2, free) * error
    half = np.where(n > 1, half, np.nan)
    return mean, mean - half, mean + half


def bootstrap_interval(
    values: ArrayLike, statistic: Statistic = np.mean, level: float = 0.95
) -> Interval:
    """Return `statistic` of the values and its percentile bootstrap interval.

    Args:
        values: n numbers, one per seed.
        statistic: takes an array and `axis`, such as `numpy.median` or `iqm`.
        level: coverage, in (0, 1).

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    x = _sample(values)
    _check_level(level)
    estimate = float(statistic(x, axis=0))
    if len(x) < 2:
        return Interval(estimate, math.nan, math.nan)
    draw = np.random.default_rng(0)  # seeded: the same interval every time
    resampled = statistic(x[draw.integers(len(x), size=(RESAMPLES, len(x)))], axis=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def iqm(scores: ArrayLike, axis: int = 0) -> Any:
    """Return the interquartile mean: the mean of the middle half of the scores along an axis.

    A quarter of the numbers, rounded down, is left out at either end. As `statistic` of
    `bootstrap_interval` it gets the interval that the reference recommends.

    References: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice", NeurIPS 2021.
    """
    from scipy import stats

    return stats.trim_mean(np.asarray(scores, dtype=float), 0.25, axis=axis)


def probability_of_improvement(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Return the probability that a run of `a` has a larger value than one of `b`.

        P(A > B) = 1 / (n m) sum_ij [a_i > b_j] + [a_i = b_j] / 2

    which is U / (n m) of Mann and Whitney: 1/2 where the methods are alike. Its interval is the
    percentile bootstrap that resamples the runs of either method by themselves.

    Args:
        a, b: n and m numbers, one per seed; seeds are not paired.
        level: coverage, in (0, 1).

    Raises:
        ValueError: no values, or a level outside (0, 1).

    Reference: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice", NeurIPS 2021.
    """
    x, y = _sample(a), _sample(b)
    _check_level(level)
    larger = 0.5 * (1 + np.sign(x[:, None] - y))
    estimate = float(larger.mean())
    if min(len(x), len(y)) < 2:
        return Interval(estimate, math.nan, math.nan)
    draw = np.random.default_rng(0)  # seeded: the same interval every time
    # A resample is how often it has each value, so that no table of all pairs is made for it.
    often = [draw.multinomial(len(v), np.full(len(v), 1 / len(v)), RESAMPLES) for v in (x, y)]
    resampled = ((often[0] @ larger) * often[1]).sum(axis=1) / larger.size
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


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
        raise ValueError(
            f"paired needs one value per seed on both sides; got {len(a)} and {len(b)}."
        )
    from scipy import stats

    gap = _sample(a) - _sample(b)
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    error = _standard_error(gap, resplit)
    constant = math.isnan(error) or error <= 1e-12 * np.abs(gap).max()  # equal but for round-off
    p_t = 2 * stats.t.sf(abs(gap.mean() / error), len(gap) - 1) if not constant else math.nan
    return Paired(
        t_interval(gap, level, resplit),
        wins,
        losses,
        len(gap),
        float(p_t),
        float(stats.wilcoxon(gap).pvalue) if gap.any() else 1.0,
        float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    )


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p values corrected for their number m, by Holm's method.

    With p_1 <= ... <= p_m, p_i becomes max_{j <= i} min(1, (m - j + 1) p_j): the chance that any
    true null hypothesis is rejected at a corrected p <= alpha is at most alpha, whatever the
    dependence between the tests.

    Args:
        p: m numbers in [0, 1]; NaN is a comparison that was not tested, and stays.

    Reference: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics, 1979.
    """
    raw = np.asarray(p, dtype=float)
    corrected = np.full(raw.shape, np.nan)
    order = np.argsort(raw)[: int(np.isfinite(raw).sum())]  # NaN sorts last
    steps = raw[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _standard_error(x: NDArray[np.float64], resplit: float) -> float:
    """Return sqrt(1 / n + resplit) sd with the n - 1 standard deviation; NaN when n < 2."""
    if len(x) < 2:
        return math.nan
    return float(x.std(ddof=1) / math.sqrt(len(x))) * math.sqrt(1 + len(x) * resplit)


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"a sample must be a non-empty list of numbers; got the shape {x.shape}.")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}.")
