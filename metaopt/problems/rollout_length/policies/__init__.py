"""Outer optimizers that set rollout lengths as they observe."""

from metaopt.problems.rollout_length.policies.actions import Absolute, Actions, Ladder
from metaopt.problems.rollout_length.policies.dqn import DQN
from metaopt.problems.rollout_length.policies.observation import Observation
from metaopt.problems.rollout_length.policies.rule import ErrorFeedback, RandomWalk, Rule
from metaopt.problems.rollout_length.policies.side_by_side import SideBySide

__all__ = [
    "DQN",
    "Absolute",
    "Actions",
    "ErrorFeedback",
    "Ladder",
    "Observation",
    "RandomWalk",
    "Rule",
    "SideBySide",
]
