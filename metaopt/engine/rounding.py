"""How far two evaluations of one function may be apart."""

from __future__ import annotations

import torch

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


def rounding(dtype: torch.dtype) -> float:
    """Return the relative error where sums are not taken in one order; 0 for integers."""
    return _ROUNDING.get(dtype, 1e-2) if dtype.is_floating_point else 0.0
