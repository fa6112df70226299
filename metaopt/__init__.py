"""metaopt: bi-level optimisation, where one optimisation steers another."""

from metaopt.engine import Engine
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.protocols import (
    Estimator,
    Feedback,
    NonFiniteError,
    OuterOptimizer,
    Problem,
    Records,
    Report,
)

__all__ = [
    "Engine",
    "Estimator",
    "Feedback",
    "GradientProblem",
    "GradientState",
    "NonFiniteError",
    "OuterOptimizer",
    "Problem",
    "Records",
    "Report",
]

__version__ = "0.1.0"
