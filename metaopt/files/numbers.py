"""Numbers as JSON has them, which knows no NaN and no infinity."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that a float can hold, or NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def or_null(value: float) -> float | None:
    """Return what is written for a number: itself, or `None` where it is not finite."""
    return value if math.isfinite(value) else None


def or_nan(value: float | None) -> float:
    """Return what was written for a number: NaN where it is null or missing."""
    return math.nan if value is None else float(value)
