"""Which way a metric is better, by its name."""

from __future__ import annotations

import re

_FALLING = ("loss", "error", "nll", "perplexity", "regret", "distance", "seconds")
_RISING = re.compile(r"(^|[/_])(accuracy|f1|auroc|precision|recall|skill|success|return)(_\d+)?$")
_ERRORS = re.compile(r"(^|[/_])(ece|brier)(_|$)")


def lower_is_better(metric: str) -> bool | None:
    """Return whether a smaller value is better, or `None` where the name does not say it.

    Smaller is better of a loss, an error (a Brier score, a calibration error), a perplexity, a
    regret or a distance, unless the name ends as an accuracy, an F1 or another score does.

    Example:
        >>> [lower_is_better(f"eval/{m}") for m in ("test_loss", "first_error_f1", "reward_spread")]
        [True, False, None]
    """
    name = metric.lower()
    if _RISING.search(name):
        return False
    return True if any(word in name for word in _FALLING) or _ERRORS.search(name) else None
