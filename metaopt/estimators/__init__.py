"""Hypergradient estimators: each runs the inner level and turns the run into feedback."""

from metaopt.estimators.conjugate_gradient import ConjugateGradient
from metaopt.estimators.direct import Direct
from metaopt.estimators.evolution_strategies import EvolutionStrategies
from metaopt.estimators.exact import Exact
from metaopt.estimators.finite_difference import FiniteDifference
from metaopt.estimators.first_order import FirstOrder
from metaopt.estimators.forward import Forward
from metaopt.estimators.gradient_descent import GradientDescent
from metaopt.estimators.implicit import Implicit
from metaopt.estimators.neumann import Neumann
from metaopt.estimators.nystrom import Nystrom
from metaopt.estimators.one_step import OneStep
from metaopt.estimators.penalty import Penalty
from metaopt.estimators.population_score import PopulationScore
from metaopt.estimators.reptile import Reptile
from metaopt.estimators.saba import Saba
from metaopt.estimators.sama import Sama
from metaopt.estimators.score import Score
from metaopt.estimators.score_function import ScoreFunction
from metaopt.estimators.soba import Soba
from metaopt.estimators.solvers import Identity
from metaopt.estimators.srba import Srba
from metaopt.estimators.unroll import Unroll

__all__ = [
    "ConjugateGradient",
    "Direct",
    "EvolutionStrategies",
    "Exact",
    "FiniteDifference",
    "FirstOrder",
    "Forward",
    "GradientDescent",
    "Identity",
    "Implicit",
    "Neumann",
    "Nystrom",
    "OneStep",
    "Penalty",
    "PopulationScore",
    "Reptile",
    "Saba",
    "Sama",
    "Score",
    "ScoreFunction",
    "Soba",
    "Srba",
    "Unroll",
]
