"""The loop, its roles and the inner level, on torch and the standard library alone."""

from metaopt.engine.engine import Engine

__all__ = ["Engine"]
