"""A judge made of a scoring template, a threshold and a probability map, and what it is worth.

A judge gives each row a score; a checker gave it an outcome, 0 or 1. A row whose answer could not
be parsed, or whose request failed, has no score (`None` or NaN): it lowers the coverage, is left
out of every other number, and never becomes a score. Rows of one query resemble each other, so
intervals resample whole queries. The scores may come from anything that scores: a language model
under a template, a reward model, the steps of a process reward model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from metaopt.metrics import resampling
from metaopt.metrics.binary import (
    Array,
    Confusion,
    Reliability,
    Scores,
    auroc,
    both,
    brier,
    brier_skill,
    confusion,
    expected_calibration_error,
    kappa,
    known,
    ones,
    only,
    paired,
    reliability,
    rogan_gladen,
)
from metaopt.metrics.resampling import clustered_intervals, ratio

__all__ = [
    "BOUNDED", "COMPARED", "CalibratedJudge", "Confusion", "Reliability", "auroc",
    "best_threshold", "brier", "brier_skill", "clustered_intervals", "compare", "confusion",
    "expected_calibration_error", "isotonic_knots", "kappa", "measure", "reliability",
    "rogan_gladen",
]  # fmt: skip

Criterion = Literal["youden", "kappa"]
Numbers = dict[str, float | None]

BOUNDED = (
    "base_rate", "auroc", "brier", "brier_skill", "kappa", "sensitivity", "specificity",
    "apparent_rate", "corrected_rate", "checked_rate",
)  # fmt: skip
"""Numbers of `measure` with an interval; the ends are `<name>_low` and `<name>_high`."""

COMPARED = ("auroc", "brier", "brier_skill", "kappa", "sensitivity", "specificity")
"""Numbers of `compare`."""


def best_threshold(scores: Scores, outcomes: ArrayLike, criterion: Criterion = "youden") -> float:
    """Return the threshold t at which the decision `score >= t` is best on these rows.

    Halfway between two neighbouring scores, the lowest of equally good ones; the lowest score,
    which decides for success everywhere, where nothing beats that.

    Args:
        scores, outcomes: the fitting rows, of both outcomes.
        criterion: "youden" maximises sensitivity + specificity - 1, whatever the base rate is, and
            that is what `rogan_gladen` divides by; "kappa" maximises Cohen's kappa.

    Raises:
        ValueError: an unknown criterion, or rows of one outcome only.
    """
    s, y = both(scores, outcomes)
    if criterion not in get_args(Criterion):
        raise ValueError(_unknown(criterion))
    levels, level = np.unique(s, return_inverse=True)
    tp, fp = (np.bincount(level, weights=v)[::-1].cumsum()[::-1] for v in (y, 1 - y))
    tn, fn = fp[0] - fp, tp[0] - tp
    quality = tp / tp[0] - fp / fp[0] if criterion == "youden" else resampling.kappa(tn, fp, fn, tp)
    at = int(np.argmax(quality))
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

    s, y = both(scores, outcomes)
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
        criterion: what the threshold maximised on the fitting rows.

    Raises:
        ValueError: knots that do not ascend or leave [0, 1], a threshold that is not finite, an
            empty range, or an unknown criterion.
    """

    template: str
    threshold: float
    knots: tuple[tuple[float, float], ...]
    score_range: tuple[float, float] | None = None
    criterion: Criterion = "youden"

    def __post_init__(self) -> None:
        x, p = np.array(self.knots, dtype=float).reshape(-1, 2).T
        ascending = np.all(np.diff(x) > 0) and np.all(np.diff(p) >= 0)
        if len(x) == 0 or not ascending or not np.isfinite(x).all() or p[0] < 0 or p[-1] > 1:
            raise ValueError(
                "knots must be (score, probability) pairs with ascending scores and probabilities "
                f"that rise within [0, 1]; got {self.knots}."
            )
        if self.criterion not in get_args(Criterion):
            raise ValueError(_unknown(self.criterion))
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
        criterion: Criterion = "youden",
    ) -> CalibratedJudge:
        """Return the judge calibrated on these rows; rows without a score are left out.

        Raises:
            ValueError: rows of one outcome only, a score outside `score_range`, an unknown
                criterion.
        """
        _in_range(known(scores), score_range)
        knots = isotonic_knots(scores, outcomes)
        threshold = best_threshold(scores, outcomes, criterion)
        return cls(template, threshold, knots, score_range, criterion)

    def probability(self, scores: Scores) -> Array:
        """Return P(success) of each row; NaN where there is no score."""
        s = _in_range(known(scores), self.score_range)
        x, p = zip(*self.knots, strict=True)
        return np.where(np.isnan(s), np.nan, np.interp(s, x, p))

    def decide(self, scores: Scores) -> Array:
        """Return 1 for success and 0 for failure of each row; NaN where there is no score."""
        s = _in_range(known(scores), self.score_range)
        return np.where(np.isnan(s), np.nan, s >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the judge as JSON values."""
        return {
            "template": self.template,
            "threshold": self.threshold,
            "knots": [list(knot) for knot in self.knots],
            "score_range": None if self.score_range is None else list(self.score_range),
            "criterion": self.criterion,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedJudge:
        """Return the judge that `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is not legal.
        """
        expected = {"template", "threshold", "knots", "score_range", "criterion"}
        if set(values) != expected:
            raise ValueError(f"a judge has the keys {sorted(expected)}; got {sorted(values)}.")
        knots = tuple((float(x), float(p)) for x, p in values["knots"])
        bounds = values["score_range"]
        ends = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        threshold = float(values["threshold"])
        return cls(str(values["template"]), threshold, knots, ends, values["criterion"])


def measure(
    judge: CalibratedJudge,
    scores: Scores,
    outcomes: ArrayLike,
    queries: ArrayLike,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2_000,
) -> Numbers:
    """Return the numbers of a judge on rows it was not fitted on, with the intervals of `BOUNDED`.

    `n` and `queries` count all rows, `base_rate` is their share of successes and `coverage` their
    share of scores; all else is of the `scored` rows, of which `scored_base_rate` succeed. Half of
    the queries, drawn at random, play rows that nobody has checked: `apparent_rate` is their share
    decided for success, `corrected_rate` its `rogan_gladen` with sensitivity and specificity of the
    other half, `checked_rate` their true share. (Rows corrected by their own sensitivity and
    specificity give back their base rate, whatever the judge is worth.) A resample re-estimates
    every number under the judge as it was fitted. `None` stands where a number is not defined.

    Args:
        scores, outcomes: one a row; a score is `None` or NaN where there is none.
        queries: one label a row; intervals resample queries.
        seed: of the halves and of the resampling.
        level: coverage of the intervals, in (0, 1).
        resamples: number of bootstrap resamples.
    """
    s, y = paired(scores, outcomes)
    has = np.isfinite(s)
    code = _codes(queries, len(s))
    half = np.random.default_rng(seed).permutation(int(code.max(initial=-1)) + 1)[code] % 2
    rows = _Rows(s, judge.probability(s), judge.decide(s), y, half)
    found: dict[str, float | None] = {"n": len(s), "queries": len(np.unique(code))}
    found |= {"scored": int(has.sum()), "coverage": float(has.mean()) if len(s) else None}
    found["scored_base_rate"] = float(y[has].mean()) if has.any() else None
    found |= {name: only(value) for name, value in _statistics(rows, ones(y)).items()}
    found["ece"] = expected_calibration_error(rows.probability, y)
    counts = confusion(rows.decided, y)
    found |= {name: float(count) for name, count in counts._asdict().items()}
    drawn = clustered_intervals(lambda w: _statistics(rows, w), code, level, resamples, seed)
    return found | _named(drawn)


def compare(
    first: CalibratedJudge,
    first_scores: Scores,
    second: CalibratedJudge,
    second_scores: Scores,
    outcomes: ArrayLike,
    queries: ArrayLike,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2_000,
) -> Numbers:
    """Return second - first of each of `COMPARED`, on the `n` rows that both have scored.

    Paired: a resample of queries is the same for both judges.
    """
    (a, y), (b, _) = paired(first_scores, outcomes), paired(second_scores, outcomes)
    code = _codes(queries, len(y))
    has = np.isfinite(a) & np.isfinite(b)
    a, b, y, code = a[has], b[has], y[has], code[has]
    sides = [
        _Rows(s, judge.probability(s), judge.decide(s), y, np.zeros(len(y), int))
        for judge, s in ((first, a), (second, b))
    ]

    def differences(weights: Array) -> dict[str, Array]:
        before, after = (_statistics(rows, weights) for rows in sides)
        return {name: after[name] - before[name] for name in COMPARED}

    found: dict[str, float | None] = {"n": len(y)}
    found |= {name: only(value) for name, value in differences(ones(y)).items()}
    return found | _named(clustered_intervals(differences, code, level, resamples, seed))


class _Rows(NamedTuple):
    """All rows with an outcome; scores, probabilities and decisions are NaN where there is none."""

    score: Array
    probability: Array
    decided: Array
    outcome: Array
    half: Any  # 1 in the half of the queries that plays unchecked rows


def _named(intervals: Mapping[str, resampling.Ends]) -> Numbers:
    """Return the ends as `<name>_low` and `<name>_high`."""
    return {
        f"{name}_{side}": end
        for name, ends in intervals.items()
        for side, end in zip(("low", "high"), ends, strict=True)
    }


def _statistics(rows: _Rows, weights: Array) -> dict[str, Array]:
    """Return the numbers of `BOUNDED` for each row of weights, (resamples, rows)."""
    has = np.isfinite(rows.score)
    s, p, d, y, half = (column[has] for column in rows)
    w = weights[:, has]
    tn, fp, fn, tp = resampling.counts(w, d, y)
    unchecked = w * half
    apparent = ratio(unchecked @ d, unchecked.sum(1))
    errors = _errors(*resampling.counts(w - unchecked, d, y))
    sensitivity, specificity = _errors(tn, fp, fn, tp)
    return {
        "base_rate": ratio(weights @ rows.outcome, weights.sum(1)),
        "auroc": resampling.auroc(w, s, y),
        "brier": resampling.brier(w, p, y),
        "brier_skill": resampling.brier_skill(w, p, y),
        "kappa": resampling.kappa(tn, fp, fn, tp),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "apparent_rate": apparent,
        "corrected_rate": resampling.rogan_gladen(apparent, *errors),
        "checked_rate": ratio(unchecked @ y, unchecked.sum(1)),
    }


def _errors(tn: Array, fp: Array, fn: Array, tp: Array) -> tuple[Array, Array]:
    """Return sensitivity and specificity."""
    return ratio(tp, tp + fn), ratio(tn, tn + fp)


def _codes(queries: ArrayLike, rows: int) -> Any:
    labels = np.asarray(queries)
    if labels.shape != (rows,):
        raise ValueError(
            f"queries must be a list with one label a row, {rows} here; got the shape "
            f"{labels.shape}."
        )
    return np.unique(labels, return_inverse=True)[1]


def _unknown(criterion: object) -> str:
    return f"criterion must be one of {', '.join(get_args(Criterion))}; got {criterion!r}."


def _in_range(scores: Array, score_range: tuple[float, float] | None) -> Array:
    lowest, highest = (-math.inf, math.inf) if score_range is None else score_range
    outside = scores[(scores < lowest) | (scores > highest)]
    if len(outside):
        raise ValueError(
            f"scores must be within score_range={score_range}; got {outside[0]}. A score that is "
            "not legal is a parse failure: pass None for it."
        )
    return scores
