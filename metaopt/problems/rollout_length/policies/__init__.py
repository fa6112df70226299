"""Outer optimizers that set rollout lengths by what they observe."""

from metaopt.problems.rollout_length.policies.dqn import DQN
from metaopt.problems.rollout_length.policies.policy import Observation
from metaopt.problems.rollout_length.policies.rules import (
    Absolute,
    ErrorFeedback,
    Ladder,
    RandomWalk,
    Rule,
)
from metaopt.problems.rollout_length.policies.vectorized import Vectorized

__all__ = [
    "DQN",
    "Absolute",
    "ErrorFeedback",
    "Ladder",
    "Observation",
    "RandomWalk",
    "Rule",
    "Vectorized",
]
