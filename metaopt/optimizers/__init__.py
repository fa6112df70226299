"""Outer optimizers: they propose the outer variable and learn from the feedback."""

from metaopt.optimizers.actions import Absolute, Actions, Ladder
from metaopt.optimizers.descent import Descent
from metaopt.optimizers.dqn import DQN
from metaopt.optimizers.grid import Grid
from metaopt.optimizers.mirror import MirrorDescent
from metaopt.optimizers.mutation import Mutation
from metaopt.optimizers.observation import Observation
from metaopt.optimizers.random import Random
from metaopt.optimizers.rule import ErrorFeedback, RandomWalk, Rule
from metaopt.optimizers.schedule import Constant, Linear, Listed, Recorded, Schedule
from metaopt.optimizers.search import Proposer, Screen, Search, Trial, unseen
from metaopt.optimizers.spaces import Choice, Normal, Uniform

__all__ = [
    "DQN",
    "Absolute",
    "Actions",
    "Choice",
    "Constant",
    "Descent",
    "ErrorFeedback",
    "Grid",
    "Ladder",
    "Linear",
    "Listed",
    "MirrorDescent",
    "Mutation",
    "Normal",
    "Observation",
    "Proposer",
    "Random",
    "RandomWalk",
    "Recorded",
    "Rule",
    "Schedule",
    "Screen",
    "Search",
    "Trial",
    "Uniform",
    "unseen",
]
