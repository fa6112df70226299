"""Scores of a set of metrics against planted behaviours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaopt.problems.metric_induction.data import Instance, KnownBehaviours
from metaopt.problems.metric_induction.metric_set import Metric
from metaopt.problems.metric_induction.prompts import Aspect

CORRELATION = 0.8
"""Least correlation of a metric's ratings with a behaviour's signs for the one to be the other."""


def behaviours_found(
    metrics: Sequence[Metric], data: KnownBehaviours, instances: Sequence[Instance]
) -> dict[str, float]:
    """Return precision and recall of the planted behaviours.

    A metric is a behaviour where ratings by a reader that never errs correlate with the behaviour's
    signs by `CORRELATION` or more over the instances. A behaviour counts once: precision is the
    number of behaviours found over that of the metrics (0 without any), recall over that of the
    behaviours.
    """
    texts = [instance.trajectory for instance in instances]
    signs = np.array([data.signs(text) for text in texts], dtype=float)
    matched = set()
    for metric in metrics:
        rated = np.array([data.rate(metric, text) for text in texts], dtype=float)
        correlations = [_correlation(rated, column) for column in signs.T]
        if max(correlations) >= CORRELATION:
            matched.add(int(np.argmax(correlations)))
    return {
        "precision": len(matched) / len(metrics) if metrics else 0.0,
        "recall": len(matched) / signs.shape[1],
    }


def aspects_rand(
    matched: Sequence[Sequence[int]], aspects: Sequence[Sequence[Aspect]], data: KnownBehaviours
) -> float | None:
    """Return the adjusted Rand index of the aspects, by metric and by planted behaviour.

    Aspects that no metric is matched to are one cluster, as those about nothing planted are one
    class. `None` where it is unknown of most aspects what they are about, as of reworded ones.
    """
    from sklearn.metrics import adjusted_rand_score

    pairs = [
        (data.behaviour(aspect.text), metric)
        for said, row in zip(aspects, matched, strict=True)
        for aspect, metric in zip(said, row, strict=True)
    ]
    known = [(behaviour, metric) for behaviour, metric in pairs if behaviour is not None]
    if not known or 2 * len(known) < len(pairs):
        return None
    return float(adjusted_rand_score(*zip(*known, strict=True)))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one of them is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
