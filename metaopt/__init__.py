"""metaopt: bi-level optimisation, where one optimisation steers another."""

from metaopt.core import Estimator, Feedback, NonFiniteError, OuterOptimizer, Problem
from metaopt.engine import Engine
from metaopt.inner import GradientProblem, GradientState

__all__ = [
    "Engine",
    "Estimator",
    "Feedback",
    "GradientProblem",
    "GradientState",
    "NonFiniteError",
    "OuterOptimizer",
    "Problem",
]

__version__ = "0.1.0"
