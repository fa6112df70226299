"""Small problems with known answers."""

from metaopt.problems.examples.knapsack import Knapsack
from metaopt.problems.examples.label_cleaning import LabelCleaning
from metaopt.problems.examples.noisy_digits import NoisyDigits
from metaopt.problems.examples.quadratic import Quadratic
from metaopt.problems.examples.ridge import Ridge

__all__ = ["Knapsack", "LabelCleaning", "NoisyDigits", "Quadratic", "Ridge"]
