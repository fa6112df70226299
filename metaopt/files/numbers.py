"""Numbers as JSON has them, which knows no NaN and no infinity."""

from __future__ import annotations

import math


def or_null(value: float) -> float | None:
    """Return what is written for a number: itself, or `None` where it is not finite."""
    return value if math.isfinite(value) else None


def or_nan(value: float | None) -> float:
    """Return what was written for a number: NaN where it is null or missing."""
    return math.nan if value is None else float(value)
