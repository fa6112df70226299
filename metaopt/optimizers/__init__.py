"""Outer optimizers: they propose the outer variable and learn from the feedback."""

from metaopt.optimizers.descent import Descent
from metaopt.optimizers.mirror import MirrorDescent
from metaopt.optimizers.mutation import Mutation
from metaopt.optimizers.open_loop import Grid, Random
from metaopt.optimizers.population_based import PopulationBased
from metaopt.optimizers.schedule import Constant, Linear, Schedule, recorded
from metaopt.optimizers.search import Search, Trial, reject_known
from metaopt.optimizers.spaces import Choice, Normal, Uniform
from metaopt.optimizers.tpe import TPE

__all__ = [
    "TPE",
    "Choice",
    "Constant",
    "Descent",
    "Grid",
    "Linear",
    "MirrorDescent",
    "Mutation",
    "Normal",
    "PopulationBased",
    "Random",
    "Schedule",
    "Search",
    "Trial",
    "Uniform",
    "recorded",
    "reject_known",
]
