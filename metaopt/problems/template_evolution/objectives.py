"""How well a judge's scores agree with true outcomes: the outer objectives, all minimised.

A judge's score s in [s_min, s_max] is read as the probability p = (s - s_min) / (s_max - s_min) of
success. The paper's alignment is a mean absolute error, which is an improper score: its optimum is
0 or 1, whichever is likelier, and where successes are rare a judge that always says "fails" comes
close to 100. The proper scores reward saying the probability, the balanced ones weigh both classes
alike, and the area under the ROC curve looks at the order alone.
"""

from __future__ import annotations

import numpy as np

from metaopt.metrics.binary import auroc

OBJECTIVES = ("mae", "balanced", "brier", "balanced_brier", "auroc")


def outer_loss(objective: str, probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return the loss of probabilities in [0, 1] against outcomes in {0, 1}, at least one of each.

    Args:
        objective: "mae", the mean of |p - y| (the paper's); "brier", the mean of (p - y)^2, a
            proper score (Brier, Monthly Weather Review, 1950); "balanced" and "balanced_brier", the
            same as a mean over the classes present of the mean within the class; "auroc", 1 -
            P(p of a success > p of a failure) with ties counting half, 0.5 for one class.
    """
    if objective == "auroc":
        area = auroc(probability, outcomes)
        return 0.5 if area is None else 1 - area
    error = np.abs(probability - outcomes)
    if objective.endswith("brier"):
        error = error**2
    if not objective.startswith("balanced"):
        return float(error.mean())
    classes = [error[outcomes == y] for y in (0, 1)]
    return float(np.mean([errors.mean() for errors in classes if len(errors)]))


def alignment(probability: np.ndarray, outcomes: np.ndarray) -> float:
    """Return 100 (1 - mean |p - y|), the paper's alignment, in [0, 100]; higher is better.

    References: Koo et al., Align to Misalign, ICLR 2026.
    """
    return 100 * (1 - outer_loss("mae", probability, outcomes))
