"""Small problems with known answers."""

from metaopt.problems.examples.hyperparameter_optimization import HyperparameterOptimization
from metaopt.problems.examples.knapsack import Knapsack
from metaopt.problems.examples.noisy_digits import NoisyDigits
from metaopt.problems.examples.quadratic import Quadratic
from metaopt.problems.examples.ridge import Ridge
from metaopt.problems.examples.scheduled_digits import ScheduledDigits
from metaopt.problems.examples.stochastic_quadratic import StochasticQuadratic
from metaopt.problems.examples.surrogate_quadratic import SurrogateQuadratic
from metaopt.problems.examples.tuned_digits import TunedDigits
from metaopt.problems.examples.value_function_toy import ValueFunctionToy

__all__ = [
    "HyperparameterOptimization",
    "Knapsack",
    "NoisyDigits",
    "Quadratic",
    "Ridge",
    "ScheduledDigits",
    "StochasticQuadratic",
    "SurrogateQuadratic",
    "TunedDigits",
    "ValueFunctionToy",
]
