"""The range of a metric, which no interval that is drawn of it leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

Range = tuple[float, float]

UNBOUNDED: Range = (-math.inf, math.inf)

_SHARES = re.compile(
    r"(^|_)(accuracy|f1|auroc|precision|recall|sensitivity|specificity|coverage|success|share|"
    r"brier|ece|confidence|pass_at|majority|hack_rate|hacked|passed|ndcg|redundancy)(_\d+)?$"
)
"""Ends of the names of shares, in 0 to 1 or in %."""

_NOT_NEGATIVE = re.compile(r"(^|_)(kl|calls)$")


def metric_range(name: str, values: Iterable[float]) -> Range:
    """Return the range of a metric by its name and its values: of a share [0, 1] or [0, 100].

    A share is in % where some value is above 1; a KL divergence and a number of calls are not
    negative. The range of other metrics is not known, nor is that of one with a value outside of
    the range of its name; `report.ranges` states one.

    Example:
        >>> metric_range("eval/first_error_f1", [0.0, 0.4])
        (0.0, 1.0)
        >>> metric_range("eval/test_accuracy", [97.5, 99.0])
        (0.0, 100.0)
        >>> metric_range("eval/kl", [4.5])
        (0.0, inf)
        >>> metric_range("eval/test_loss", [0.1])
        (-inf, inf)
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if _NOT_NEGATIVE.search(name.rpartition("/")[2]) and low >= 0:
        return (0.0, math.inf)
    if not _SHARES.search(name.rpartition("/")[2]) or low < 0 or high > 100:
        return UNBOUNDED
    return (0.0, 1.0) if high <= 1 else (0.0, 100.0)
