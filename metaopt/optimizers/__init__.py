"""Outer optimizers: they propose the outer variable and learn from the feedback."""

from metaopt.optimizers.descent import Descent

__all__ = ["Descent"]
