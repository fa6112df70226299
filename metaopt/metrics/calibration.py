"""A judge of a template, a threshold and a probability map: its AUROC, Brier score, sensitivity.

A judge gives each example a score; a checker gave it an outcome, 0 or 1. An example whose answer
could not be parsed, or whose request failed, has no score (`None` or NaN): it lowers the coverage,
is left out of every other figure, and never becomes a score. Examples of one query resemble each
other, so intervals resample whole queries. The scores may come from anything that scores: a
language model under a template, a reward model, the steps of a process reward model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaopt.metrics import binary
from metaopt.metrics.binary import Array, Scores, as_scores, ones, only, paired, ratio, scored
from metaopt.metrics.bootstrap import Ends, clustered_intervals

Numbers = dict[str, float | None]

COMPARED = ("auroc", "brier", "brier_skill", "kappa", "sensitivity", "specificity")
"""Figures of `compare`."""


def best_threshold(scores: Scores, outcomes: ArrayLike) -> float:
    """Return the threshold t at which `score >= t` has the largest Youden index on these examples.

    The index is sensitivity + specificity - 1, whatever the base rate is, and what `rogan_gladen`
    divides by. t is halfway between two neighbouring scores, the lowest of equally good ones; the
    lowest score, which decides for success everywhere, where nothing beats that.

    Args:
        scores, outcomes: the fitting examples, of both outcomes.

    Raises:
        ValueError: examples of one outcome only.
    """
    s, y = _both(scores, outcomes)
    levels, level = np.unique(s, return_inverse=True)
    tp, fp = (np.bincount(level, weights=v)[::-1].cumsum()[::-1] for v in (y, 1 - y))
    at = int(np.argmax(tp / tp[0] - fp / fp[0]))  # the first of equal maxima: the lowest score
    between = (levels[max(at - 1, 0)] + levels[at]) / 2
    return float(between if between > levels[max(at - 1, 0)] else levels[at])


def isotonic_knots(scores: Scores, outcomes: ArrayLike) -> tuple[tuple[float, float], ...]:
    """Return (score, probability) knots of the non-decreasing map of least squared error.

    `numpy.interp` through them, constant beyond the ends, is scikit-learn's `IsotonicRegression`
    with `out_of_bounds="clip"`.

    References: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass
    probability estimates", KDD 2002.
    """
    from sklearn.isotonic import IsotonicRegression

    s, y = _both(scores, outcomes)
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(s, y)
    x, p = fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist()
    return tuple(zip(x, p, strict=True))


@dataclass(frozen=True)
class CalibratedJudge:
    """A scoring template with what turns its scores into probabilities and decisions.

    Args:
        template: its text; for a model that scores by itself, its name.
        threshold: scores at or above it are decided for success.
        knots: (score, probability) pairs, ascending in both, interpolated and clipped at the ends.
        score_range: the lowest and the highest legal score, or `None` where scores are unbounded.

    Raises:
        ValueError: knots that do not ascend or leave [0, 1], a threshold that is not finite, or an
            empty range.

    Example:
        >>> judge = CalibratedJudge.fit("a template", [1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1])
        >>> judge.probability([1.0, 3.0, None]).tolist()
        [0.0, 0.5, nan]
        >>> judge.decide([1.0, 3.0]).tolist()
        [0.0, 1.0]
    """

    template: str
    threshold: float
    knots: tuple[tuple[float, float], ...]
    score_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        x, p = np.array(self.knots, dtype=float).reshape(-1, 2).T
        ascending = np.all(np.diff(x) > 0) and np.all(np.diff(p) >= 0)
        if len(x) == 0 or not ascending or not np.isfinite(x).all() or p[0] < 0 or p[-1] > 1:
            raise ValueError(
                "knots must be (score, probability) pairs with ascending scores and probabilities "
                f"that rise within [0, 1]; got {self.knots}."
            )
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite score; got {self.threshold}.")
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError(f"score_range must be (lowest, highest); got {self.score_range}.")

    @classmethod
    def fit(
        cls,
        template: str,
        scores: Scores,
        outcomes: ArrayLike,
        score_range: tuple[float, float] | None = None,
    ) -> CalibratedJudge:
        """Return the judge calibrated on these examples; those without a score are left out.

        Raises:
            ValueError: examples of one outcome only, or a score outside `score_range`.
        """
        _in_range(scores, score_range)
        knots = isotonic_knots(scores, outcomes)
        return cls(template, best_threshold(scores, outcomes), knots, score_range)

    def probability(self, scores: Scores) -> Array:
        """Return P(success) of each example; NaN where there is no score."""
        s = _in_range(scores, self.score_range)
        x, p = zip(*self.knots, strict=True)
        return np.where(np.isnan(s), np.nan, np.interp(s, x, p))

    def decide(self, scores: Scores) -> Array:
        """Return 1 for success and 0 for failure of each example; NaN where there is no score."""
        s = _in_range(scores, self.score_range)
        return np.where(np.isnan(s), np.nan, s >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the judge as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedJudge:
        """Return the judge that `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is not legal.
        """
        expected = {"template", "threshold", "knots", "score_range"}
        if set(values) != expected:
            raise ValueError(f"a judge has the keys {sorted(expected)}; got {sorted(values)}.")
        knots = tuple((float(x), float(p)) for x, p in values["knots"])
        bounds = values["score_range"]
        ends = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        return cls(str(values["template"]), float(values["threshold"]), knots, ends)


def measure(
    judge: CalibratedJudge,
    scores: Scores,
    outcomes: ArrayLike,
    queries: ArrayLike,
    seed: int = 0,
    resamples: int = 2_000,
) -> Numbers:
    """Return the figures of a judge on held-out examples, most of them with 95 % intervals.

    `n` and `queries` count all examples, `base_rate` is their share of successes and `coverage`
    their share of scores; all else is of the `scored` ones, of which `scored_base_rate` succeed.
    Half of the queries, drawn at random, play examples that nobody has checked: `apparent_rate` is
    their share decided for success, `corrected_rate` its `rogan_gladen` with sensitivity and
    specificity of the other half, `checked_rate` their true share. (Examples corrected by their own
    sensitivity and specificity give back their base rate, however poor the judge is.) A resample
    re-estimates every figure under the judge as it was fitted; the ends of its interval are
    `<name>_low` and `<name>_high`. `None` stands where a figure is not defined.

    Args:
        scores, outcomes: one per example; a score is `None` or NaN where there is none.
        queries: one label per example; intervals resample queries.
        seed: of the halves and of the resampling.
        resamples: number of bootstrap resamples.
    """
    s, y = paired(scores, outcomes)
    has = np.isfinite(s)
    code = _codes(queries, len(s))
    # By query, as everywhere: responses to one question are alike.
    half = np.random.default_rng(seed).permutation(int(code.max(initial=-1)) + 1)[code] % 2
    data = _Judged(s, judge.probability(s), judge.decide(s), y, half)
    cells = binary.counts(ones(y[has]), data.decision[has], y[has])
    numbers: Numbers = {
        "n": len(s),
        "queries": len(np.unique(code)),
        "scored": int(has.sum()),
        "coverage": float(has.mean()) if len(s) else None,
        "scored_base_rate": float(y[has].mean()) if has.any() else None,
        **{name: only(value) for name, value in _statistics(data, ones(y)).items()},
        "ece": binary.expected_calibration_error(data.probability, y),
        **{name: float(c[0]) for name, c in zip(("tn", "fp", "fn", "tp"), cells, strict=True)},
    }
    ends = clustered_intervals(lambda w: _statistics(data, w), code, resamples, seed)
    return numbers | _named(ends)


def compare(
    first: CalibratedJudge,
    first_scores: Scores,
    second: CalibratedJudge,
    second_scores: Scores,
    outcomes: ArrayLike,
    queries: ArrayLike,
    seed: int = 0,
    resamples: int = 2_000,
) -> Numbers:
    """Return second - first of each of `COMPARED`, on the `n` examples that both have scored.

    Paired: a resample of queries is the same for both judges.
    """
    (a, y), (b, _) = paired(first_scores, outcomes), paired(second_scores, outcomes)
    code = _codes(queries, len(y))
    has = np.isfinite(a) & np.isfinite(b)
    a, b, y, code = a[has], b[has], y[has], code[has]
    sides = [
        _Judged(s, judge.probability(s), judge.decide(s), y, np.zeros(len(y), int))
        for judge, s in ((first, a), (second, b))
    ]

    def differences(weights: Array) -> dict[str, Array]:
        before, after = (_statistics(side, weights) for side in sides)
        return {name: after[name] - before[name] for name in COMPARED}

    numbers: Numbers = {"n": len(y)}
    numbers |= {name: only(value) for name, value in differences(ones(y)).items()}
    return numbers | _named(clustered_intervals(differences, code, resamples, seed))


class _Judged(NamedTuple):
    """All examples with an outcome; NaN where there is no score."""

    score: Array
    probability: Array
    decision: Array
    outcome: Array
    half: Any  # 1 in the half of the queries that plays unchecked examples


def _named(intervals: Mapping[str, Ends]) -> Numbers:
    """Return the ends as `<name>_low` and `<name>_high`."""
    return {
        f"{name}_{side}": end
        for name, ends in intervals.items()
        for side, end in zip(("low", "high"), ends, strict=True)
    }


def _statistics(data: _Judged, weights: Array) -> dict[str, Array]:
    """Return the figures with an interval for each row of weights, (resamples, examples)."""
    has = np.isfinite(data.score)
    s, p, d, y, half = (column[has] for column in data)
    w = weights[:, has]
    cells = binary.counts(w, d, y)
    unchecked = w * half
    apparent = ratio(unchecked @ d, unchecked.sum(1))
    errors = _sensitivity_specificity(*binary.counts(w - unchecked, d, y))
    sensitivity, specificity = _sensitivity_specificity(*cells)
    return {
        "base_rate": ratio(weights @ data.outcome, weights.sum(1)),
        "auroc": binary.weighted_auroc(w, s, y),
        "brier": binary.weighted_brier(w, p, y),
        "brier_skill": binary.weighted_brier_skill(w, p, y),
        "kappa": binary.weighted_kappa(*cells),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "apparent_rate": apparent,
        "corrected_rate": binary.rogan_gladen(apparent, *errors),
        "checked_rate": ratio(unchecked @ y, unchecked.sum(1)),
    }


def _sensitivity_specificity(tn: Array, fp: Array, fn: Array, tp: Array) -> tuple[Array, Array]:
    return ratio(tp, tp + fn), ratio(tn, tn + fp)


def _both(scores: Scores, outcomes: ArrayLike) -> tuple[Array, Array]:
    """Return scores and outcomes of the examples that have a score, of both outcomes."""
    s, y = scored(scores, outcomes)
    if not 0 < y.sum() < len(y):
        raise ValueError(
            f"a judge is calibrated on scored examples of both outcomes; got {int(y.sum())} "
            f"successes and {int(len(y) - y.sum())} failures. Add labelled examples."
        )
    return s, y


def _codes(queries: ArrayLike, count: int) -> Any:
    labels = np.asarray(queries)
    if labels.shape != (count,):
        raise ValueError(
            f"queries must be a list with one label per example, {count} here; got the shape "
            f"{labels.shape}."
        )
    return np.unique(labels, return_inverse=True)[1]


def _in_range(scores: Scores, score_range: tuple[float, float] | None) -> Array:
    s = as_scores(scores)
    lowest, highest = score_range or (-math.inf, math.inf)
    outside = s[(s < lowest) | (s > highest)]
    if len(outside):
        raise ValueError(
            f"scores must be within score_range={score_range}; got {outside[0]}. A score that is "
            "not legal is a parse failure: pass None for it."
        )
    return s
