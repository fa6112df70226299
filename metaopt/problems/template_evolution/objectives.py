"""How well a judge's scores agree with true outcomes: the outer objectives, all minimised.

A judge's score s in [s_min, s_max] is read as the probability p = (s - s_min) / (s_max - s_min) of
success. The paper's alignment is a mean absolute error, which is an improper score: its optimum is
0 or 1, whichever is likelier, and where successes are rare a judge that always says "fails" comes
close to 100. The proper scores reward saying the probability, the balanced ones weigh both classes
alike, and the area under the ROC curve looks at the order alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

Objective = Callable[[np.ndarray, np.ndarray], float]
"""From probabilities in [0, 1] and outcomes in {0, 1}, at least one of each row, to a loss."""


def alignment(probability: ArrayLike, outcomes: ArrayLike) -> float:
    """Return 100 (1 - mean |p - y|), the paper's alignment, in [0, 100]; higher is better.

    References: Koo et al., Align to Misalign, ICLR 2026.
    """
    return 100 * (1 - mae(np.asarray(probability), np.asarray(outcomes)))


def mae(probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the mean of |p - y|: the paper's objective, as a loss in [0, 1]."""
    return float(np.abs(probability - outcomes).mean())


def balanced(probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the mean over the classes present of the mean of |p - y| within the class."""
    return _by_class(np.abs(probability - outcomes), outcomes)


def brier(probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the mean of (p - y)^2, a proper score (Brier, Monthly Weather Review, 1950)."""
    return float(((probability - outcomes) ** 2).mean())


def balanced_brier(probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the mean over the classes present of the mean of (p - y)^2 within the class."""
    return _by_class((probability - outcomes) ** 2, outcomes)


def auroc(probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return 1 - P(p of a success > p of a failure), ties counting half; 0.5 for one class."""
    successes = int(outcomes.sum())
    failures = len(outcomes) - successes
    if successes == 0 or failures == 0:
        return 0.5
    ranks = rankdata(probability)[outcomes == 1].sum()
    return float(1 - (ranks - successes * (successes + 1) / 2) / (successes * failures))


OBJECTIVES: dict[str, Objective] = {
    "mae": mae,
    "balanced": balanced,
    "brier": brier,
    "balanced_brier": balanced_brier,
    "auroc": auroc,
}
"""The outer objectives by name."""


def _by_class(losses: np.ndarray, outcomes: np.ndarray) -> float:
    return float(np.mean([losses[outcomes == y].mean() for y in (0, 1) if (outcomes == y).any()]))
