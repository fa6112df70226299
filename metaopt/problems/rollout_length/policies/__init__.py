"""Outer optimizers that set rollout lengths by what they observe."""

from metaopt.problems.rollout_length.policies.actions import Absolute, Actions, Ladder
from metaopt.problems.rollout_length.policies.dqn import DQN
from metaopt.problems.rollout_length.policies.policy import Observation
from metaopt.problems.rollout_length.policies.rule import ErrorFeedback, RandomWalk, Rule
from metaopt.problems.rollout_length.policies.vectorized import Vectorized

__all__ = [
    "DQN",
    "Absolute",
    "Actions",
    "ErrorFeedback",
    "Ladder",
    "Observation",
    "RandomWalk",
    "Rule",
    "Vectorized",
]
