"""Figures of scores, probabilities and decisions against binary outcomes.

An outcome is 0 or 1. An example without a score (`None` or NaN: a parse failure, a failed request)
is left out of every figure and never becomes a score.

Each figure has one formula, of weighted examples: a table of weights (resamples, examples) says how
often each example was drawn, and gives one number per resample, NaN where it is not defined. The
plain figure is that of all weights 1, `None` where it is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Scores = ArrayLike | Sequence[float | None]


def auroc(scores: Scores, outcomes: ArrayLike) -> float | None:
    """Return P(score of a success > score of a failure) + P(equal) / 2; `None` for one class."""
    s, y = scored(scores, outcomes)
    return only(weighted_auroc(ones(y), s, y))


def brier(probability: Scores, outcomes: ArrayLike) -> float | None:
    """Return the mean of (probability - outcome)^2, in [0, 1]; lower is better."""
    p, y = probable(probability, outcomes)
    return only(weighted_brier(ones(y), p, y))


def kappa(decisions: Scores, outcomes: ArrayLike) -> float | None:
    """Return Cohen's kappa, (agreement - chance) / (1 - chance); `None` where chance is 1.

    References: Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    d, y = scored(decisions, outcomes)
    _check_binary(d, "decisions")
    return only(weighted_kappa(*counts(ones(y), d, y)))


def wilson(rate: ArrayLike, count: ArrayLike) -> tuple[Array, Array]:
    """Return the ends of Wilson's 95 % interval of rates in [0, 1] among `count` examples each.

    The examples are taken to be independent; a rate need not be a whole number of them, since ties
    may count half. The interval holds the rate itself, whatever the rounding.

    References: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 1927.
    """
    from scipy.special import ndtri

    p, n = np.asarray(rate, dtype=float), np.asarray(count, dtype=float)
    z = float(ndtri(0.975))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    # Rounding may put an end a little beyond the rate itself, which makes a negative error bar.
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, 1)
    return np.minimum(low, p), np.maximum(high, p)


class Reliability(NamedTuple):
    """Bins of equal mass, in ascending order; each field has one number per bin.

    `low` and `high` are Wilson's interval of the observed rate.
    """

    probability: Array
    observed: Array
    low: Array
    high: Array
    size: Array


def reliability(probability: Scores, outcomes: ArrayLike, bins: int = 10) -> Reliability:
    """Return observed rates in at most `bins` bins of about equal mass.

    Equal probabilities share a bin: the one that holds the middle of their ranks.

    Raises:
        ValueError: bins < 1, probabilities outside [0, 1], outcomes other than 0 and 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, such as 10; got {bins}.")
    p, y = probable(probability, outcomes)
    _, level, size = np.unique(p, return_inverse=True, return_counts=True)
    middle = (np.cumsum(size) - size / 2) / max(len(p), 1)
    _, index = np.unique(np.floor(bins * middle)[level], return_inverse=True)
    count = np.bincount(index).astype(float)
    mean, rate = (np.bincount(index, weights=v) / count for v in (p, y))
    return Reliability(mean, rate, *wilson(rate, count), count)


def expected_calibration_error(
    probability: Scores, outcomes: ArrayLike, bins: int = 10
) -> float | None:
    """Return the mean over examples of |mean probability - observed rate| of the example's bin.

    Bins are those of `reliability`. The estimate is biased upwards by about the noise of a bin's
    rate, and a resample has that bias twice: it gets no bootstrap interval here.
    """
    binned = reliability(probability, outcomes, bins)
    gap = np.abs(binned.probability - binned.observed)
    return float(np.average(gap, weights=binned.size)) if len(gap) else None


def weighted_auroc(weights: Array, scores: Array, outcomes: Array) -> Array:
    """Return the Mann-Whitney probability that a success outscores a failure; ties count half."""
    if len(scores) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    w, y = weights[:, order], outcomes[order]
    positive, negative = (np.add.reduceat(w * v, starts, axis=1) for v in (y, 1 - y))
    below = np.cumsum(negative, axis=1) - negative / 2  # of equal scores a half
    return ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def weighted_brier(weights: Array, probability: Array, outcomes: Array) -> Array:
    """Return the mean squared error of the probabilities."""
    return ratio(weights @ (probability - outcomes) ** 2, weights.sum(1))


def weighted_brier_skill(weights: Array, probability: Array, outcomes: Array) -> Array:
    """Return 1 - Brier / (Brier of always saying the base rate): 1 is perfect, below 0 worse."""
    base = ratio(weights @ outcomes, weights.sum(1))
    return 1 - ratio(weighted_brier(weights, probability, outcomes), base * (1 - base))


def counts(weights: Array, decisions: Array, outcomes: Array) -> tuple[Array, Array, Array, Array]:
    """Return tn, fp, fn, tp."""
    yes, no = weights * decisions, weights * (1 - decisions)
    return no @ (1 - outcomes), yes @ (1 - outcomes), no @ outcomes, yes @ outcomes


def weighted_kappa(tn: Array, fp: Array, fn: Array, tp: Array) -> Array:
    """Return Cohen's kappa of counts."""
    return ratio(2 * (tp * tn - fn * fp), (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn))


def rogan_gladen(apparent: Array, sensitivity: Array, specificity: Array) -> Array:
    """Return (apparent + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1].

    The success rate behind a judge's rate of positives; NaN where sensitivity + specificity <= 1,
    since such a judge says nothing about the rate.

    References: Rogan and Gladen, "Estimating prevalence from the results of a screening test",
    American Journal of Epidemiology, 1978.
    """
    j = sensitivity + specificity - 1
    return np.clip(ratio(apparent + specificity - 1, np.where(j > 1e-12, j, 0)), 0, 1)


def ratio(a: Array, b: Array) -> Array:
    """Return a / b, NaN where b is 0."""
    quotient: Array = np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b != 0)
    return quotient


def as_scores(scores: Scores) -> Array:
    """Return the scores as numbers, NaN where there is none.

    Raises:
        ValueError: not a list, or an infinite score.
    """
    s = np.asarray(scores, dtype=float)
    if s.ndim != 1:
        raise ValueError(f"scores must be a list with one number each; got the shape {s.shape}.")
    if np.isinf(s).any():
        raise ValueError("scores must be finite, or None where there is none; got an infinite one.")
    return s


def paired(scores: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return scores, NaN where there is none, and outcomes of all examples.

    Raises:
        ValueError: lists of different lengths, outcomes other than 0 and 1.
    """
    s, y = as_scores(scores), np.asarray(outcomes, dtype=float)
    if s.shape != y.shape:
        raise ValueError(
            f"scores and outcomes need one number per example each; got {s.shape} and {y.shape}."
        )
    _check_binary(y, "outcomes")
    return s, y


def scored(scores: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return scores and outcomes of the examples that have a score."""
    s, y = paired(scores, outcomes)
    return s[~np.isnan(s)], y[~np.isnan(s)]


def probable(probability: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return probabilities and outcomes of the examples that have a probability."""
    p, y = scored(probability, outcomes)
    if len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise ValueError(f"probabilities must be in [0, 1]; got {p.min()} to {p.max()}.")
    return p, y


def ones(examples: Array) -> Array:
    """Return the weights (1, examples) of an estimate."""
    return np.ones((1, len(examples)))


def only(values: Array) -> float | None:
    """Return the one number of an estimate, `None` where it is not defined."""
    return None if np.isnan(values[0]) else float(values[0])


def _check_binary(values: Array, name: str) -> None:
    strange = values[~np.isin(values, (0, 1))]
    if len(strange):
        raise ValueError(
            f"{name} must be 0 or 1; got {strange[0]}. Leave out examples of ambiguous outcome."
        )
