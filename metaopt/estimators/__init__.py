"""Hypergradient estimators: each runs the inner level and turns the run into feedback."""

from metaopt.estimators.score import Score
from metaopt.estimators.unroll import Unroll

__all__ = ["Score", "Unroll"]
