"""Numbers of scores, probabilities and decisions against binary outcomes.

A row is a score and an outcome, 0 or 1. A row without a score (`None` or NaN: a parse failure, a
failed request) is left out of every number and never becomes a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from metaopt.metrics import resampling

Array = NDArray[np.float64]
Scores = ArrayLike | Sequence[float | None]

BINS = 10


class Confusion(NamedTuple):
    """Counts of decisions against outcomes."""

    tn: int
    fp: int
    fn: int
    tp: int


class Reliability(NamedTuple):
    """Bins of equal mass, in ascending order; each field has one number a bin.

    `low` and `high` are Wilson's interval of the observed rate, which takes rows as independent.
    """

    probability: Array
    observed: Array
    low: Array
    high: Array
    rows: Array


def auroc(scores: Scores, outcomes: ArrayLike) -> float | None:
    """Return P(score of a success > score of a failure) + P(equal) / 2; `None` for one class."""
    s, y = scored(scores, outcomes)
    return only(resampling.auroc(ones(y), s, y))


def brier(probability: Scores, outcomes: ArrayLike) -> float | None:
    """Return the mean of (probability - outcome)^2, in [0, 1]; lower is better."""
    p, y = probable(probability, outcomes)
    return only(resampling.brier(ones(y), p, y))


def brier_skill(probability: Scores, outcomes: ArrayLike) -> float | None:
    """Return 1 - Brier / Brier of always saying the base rate; `None` for one class.

    1 is perfect, 0 as good as the rows' own base rate, below 0 worse.
    """
    p, y = probable(probability, outcomes)
    return only(resampling.brier_skill(ones(y), p, y))


def expected_calibration_error(
    probability: Scores, outcomes: ArrayLike, bins: int = BINS
) -> float | None:
    """Return the mean over rows of |mean probability - observed rate| of the row's bin.

    Bins are those of `reliability`. The estimate is biased upwards by about the noise of a bin's
    rate, and a resample has that bias twice: it gets no bootstrap interval here.
    """
    found = reliability(probability, outcomes, bins)
    gap = np.abs(found.probability - found.observed)
    return float(np.average(gap, weights=found.rows)) if len(gap) else None


def reliability(probability: Scores, outcomes: ArrayLike, bins: int = BINS) -> Reliability:
    """Return observed rates in at most `bins` bins of about equal mass.

    Equal probabilities share a bin: the one that holds the middle of their ranks.

    Raises:
        ValueError: bins < 1, probabilities outside [0, 1], outcomes other than 0 and 1.

    References: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 1927.
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, such as {BINS}; got {bins}.")
    p, y = probable(probability, outcomes)
    _, level, size = np.unique(p, return_inverse=True, return_counts=True)
    middle = (np.cumsum(size) - size / 2) / max(len(p), 1)
    _, row_bin = np.unique(np.floor(bins * middle)[level], return_inverse=True)
    count = np.bincount(row_bin).astype(float)
    mean, rate = (np.bincount(row_bin, weights=v) / count for v in (p, y))
    z = float(ndtri(0.975))
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return Reliability(
        mean, rate, np.maximum(centre - half, 0), np.minimum(centre + half, 1), count
    )


def confusion(decided: Scores, outcomes: ArrayLike) -> Confusion:
    """Return the counts of decisions (0, 1, or none) against outcomes."""
    d, y = scored(decided, outcomes)
    check_binary(d, "decided")
    return Confusion(*(int(v[0]) for v in resampling.counts(ones(y), d, y)))


def kappa(decided: Scores, outcomes: ArrayLike) -> float | None:
    """Return Cohen's kappa, (agreement - chance) / (1 - chance); `None` where chance is 1.

    References: Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    tn, fp, fn, tp = (np.array([float(v)]) for v in confusion(decided, outcomes))
    return only(resampling.kappa(tn, fp, fn, tp))


def rogan_gladen(apparent: float, sensitivity: float, specificity: float) -> float | None:
    """Return (apparent + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1].

    The success rate behind a judge's rate of positives; `None` where sensitivity + specificity
    <= 1, since such a judge says nothing about the rate.

    References: Rogan and Gladen, "Estimating prevalence from the results of a screening test",
    American Journal of Epidemiology, 1978.
    """
    for name, value in (("apparent", apparent), ("sensitivity", sensitivity),
                        ("specificity", specificity)):  # fmt: skip
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share of rows, in [0, 1]; got {value}.")
    return only(
        resampling.rogan_gladen(*(np.array([v]) for v in (apparent, sensitivity, specificity)))
    )


def known(scores: Scores) -> Array:
    """Return the scores as numbers, NaN where there is none.

    Raises:
        ValueError: not a list, or an infinite score.
    """
    s = np.asarray(scores, dtype=float)
    if s.ndim != 1:
        raise ValueError(f"scores must be a list with one number a row; got the shape {s.shape}.")
    if np.isinf(s).any():
        raise ValueError(
            "scores must be finite, or None where a row has none; got an infinite one."
        )
    return s


def paired(scores: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return scores, NaN where there is none, and outcomes of all rows.

    Raises:
        ValueError: lists of different lengths, outcomes other than 0 and 1.
    """
    s, y = known(scores), np.asarray(outcomes, dtype=float)
    if s.shape != y.shape:
        raise ValueError(
            f"scores and outcomes need one number a row each; got {s.shape} and {y.shape}."
        )
    check_binary(y, "outcomes")
    return s, y


def scored(scores: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return scores and outcomes of the rows that have a score."""
    s, y = paired(scores, outcomes)
    return s[~np.isnan(s)], y[~np.isnan(s)]


def both(scores: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return scores and outcomes of the rows that have a score, of both outcomes.

    Raises:
        ValueError: rows of one outcome only.
    """
    s, y = scored(scores, outcomes)
    if not 0 < y.sum() < len(y):
        raise ValueError(
            f"a judge is calibrated on scored rows of both outcomes; got {int(y.sum())} successes "
            f"and {int(len(y) - y.sum())} failures. Add labelled rows."
        )
    return s, y


def probable(probability: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return probabilities and outcomes of the rows that have a probability."""
    p, y = scored(probability, outcomes)
    if len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise ValueError(f"probabilities must be in [0, 1]; got {p.min()} to {p.max()}.")
    return p, y


def check_binary(values: Array, name: str) -> None:
    """Raise a ValueError unless all values are 0 or 1."""
    if not np.isin(values, (0, 1)).all():
        strange = values[~np.isin(values, (0, 1))][0]
        raise ValueError(
            f"{name} must be 0 or 1; got {strange}. Leave rows with an ambiguous outcome out."
        )


def ones(rows: Array) -> Array:
    """Return the weights (1, rows) of an estimate."""
    return np.ones((1, len(rows)))


def only(values: Array) -> float | None:
    """Return the one number of an estimate, `None` where it is not defined."""
    return None if np.isnan(values[0]) else float(values[0])
