"""Hypergradient estimators: each runs the inner level and turns the run into feedback."""

from metaopt.estimators.implicit import Implicit
from metaopt.estimators.nystrom import Nystrom
from metaopt.estimators.one_step import OneStep
from metaopt.estimators.score import Score
from metaopt.estimators.score_function import ScoreFunction
from metaopt.estimators.solvers import ConjugateGradient, Exact, Identity, Neumann
from metaopt.estimators.unroll import Unroll

__all__ = [
    "ConjugateGradient",
    "Exact",
    "Identity",
    "Implicit",
    "Neumann",
    "Nystrom",
    "OneStep",
    "Score",
    "ScoreFunction",
    "Unroll",
]
