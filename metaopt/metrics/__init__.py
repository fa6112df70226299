"""Figures of scores and decisions: one implementation of each, for every family.

`binary` has AUROC, Brier, kappa, Wilson's interval and the calibration error; `best_of_n` best of
n, pass@n and majority votes; `calibration` a judge with its threshold and its probabilities;
`bootstrap` intervals that resample whole queries.
"""

from metaopt.metrics.best_of_n import best_of_n, majority_vote, pass_at_n
from metaopt.metrics.binary import auroc, brier, expected_calibration_error, kappa, wilson
from metaopt.metrics.calibration import CalibratedJudge

__all__ = [
    "CalibratedJudge",
    "auroc",
    "best_of_n",
    "brier",
    "expected_calibration_error",
    "kappa",
    "majority_vote",
    "pass_at_n",
    "wilson",
]
