"""Outer optimizers: they propose the outer variable and learn from the feedback."""

from metaopt.optimizers.descent import Descent
from metaopt.optimizers.grid import Grid
from metaopt.optimizers.mirror import MirrorDescent
from metaopt.optimizers.mutation import Mutation
from metaopt.optimizers.random import Random
from metaopt.optimizers.schedule import Constant, Linear, Listed, Recorded, Schedule
from metaopt.optimizers.search import Proposer, Screen, Search, Trial, reject_known
from metaopt.optimizers.spaces import Choice, Normal, Uniform

__all__ = [
    "Choice",
    "Constant",
    "Descent",
    "Grid",
    "Linear",
    "Listed",
    "MirrorDescent",
    "Mutation",
    "Normal",
    "Proposer",
    "Random",
    "Recorded",
    "Schedule",
    "Screen",
    "Search",
    "Trial",
    "Uniform",
    "reject_known",
]
