"""metaopt: bi-level optimisation, where one optimisation steers another.

`__all__` is the table of contents. A name is imported when it is first used, so that the command's
help does not wait for torch. `run` does what the command `metaopt` does; `Engine` is its loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaopt.engine.engine import Engine
    from metaopt.engine.finite import Finite
    from metaopt.engine.functional import functional_call
    from metaopt.engine.gradient_problem import (
        GradientProblem,
        GradientState,
        SampledProblem,
        split_module,
    )
    from metaopt.engine.inner_loop import InnerLoop
    from metaopt.engine.inner_optimizers import SGD, Adam, AdamW, NormalizedSGD
    from metaopt.engine.protocols import (
        Estimator,
        Feedback,
        NonFiniteError,
        OuterOptimizer,
        Problem,
        Records,
        Report,
    )
    from metaopt.engine.random import Draw, epoch_batch, fold, generator
    from metaopt.engine.remat import remat
    from metaopt.engine.remat_blocks import remat_blocks
    from metaopt.engine.schedules import Cosine, StepDecay
    from metaopt.estimators import (
        ConjugateGradient,
        Direct,
        EvolutionStrategies,
        Exact,
        FiniteDifference,
        FirstOrder,
        Forward,
        Identity,
        Implicit,
        Neumann,
        Nystrom,
        OneStep,
        Penalty,
        Sama,
        Score,
        ScoreFunction,
        Soba,
        Unroll,
    )
    from metaopt.files.errors import ConfigError
    from metaopt.optimizers import (
        Choice,
        Descent,
        Grid,
        MirrorDescent,
        Normal,
        Random,
        Schedule,
        Search,
        Uniform,
    )
    from metaopt.runs.python import load, resume, run
    from metaopt.runs.result import Result
    from metaopt.testing.check import check_hypergradient as check

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022
    # runs
    "run",
    "resume",
    "load",
    "check",
    "Engine",
    "Result",
    # roles, and what they exchange
    "Problem",
    "GradientProblem",
    "SampledProblem",
    "Finite",
    "Estimator",
    "OuterOptimizer",
    "InnerLoop",
    "Feedback",
    "Draw",
    "GradientState",
    "Report",
    "Records",
    "split_module",
    "functional_call",
    "remat_blocks",
    "remat",
    "epoch_batch",
    # inner optimizers
    "SGD",
    "NormalizedSGD",
    "Adam",
    "AdamW",
    "Cosine",
    "StepDecay",
    # estimators
    "Unroll",
    "Forward",
    "FirstOrder",
    "OneStep",
    "Implicit",
    "Exact",
    "ConjugateGradient",
    "Neumann",
    "Nystrom",
    "Identity",
    "Soba",
    "Penalty",
    "FiniteDifference",
    "Sama",
    "Direct",
    "Score",
    "ScoreFunction",
    "EvolutionStrategies",
    # outer optimizers, and the spaces that some of them search
    "Descent",
    "MirrorDescent",
    "Search",
    "Random",
    "Grid",
    "Schedule",
    "Choice",
    "Uniform",
    "Normal",
    # for problems and optimizers of your own
    "fold",
    "generator",
    "NonFiniteError",
    "ConfigError",
]

_MODULES = {
    "engine.engine": "Engine",
    "engine.finite": "Finite",
    "engine.functional": "functional_call",
    "engine.gradient_problem": "GradientProblem GradientState SampledProblem split_module",
    "engine.inner_loop": "InnerLoop",
    "engine.inner_optimizers": "SGD Adam AdamW NormalizedSGD",
    "engine.protocols": ("Estimator Feedback NonFiniteError OuterOptimizer Problem Records Report"),
    "engine.random": "Draw epoch_batch fold generator",
    "engine.remat": "remat",
    "engine.remat_blocks": "remat_blocks",
    "engine.schedules": "Cosine StepDecay",
    "estimators": (
        "ConjugateGradient Direct EvolutionStrategies Exact FiniteDifference FirstOrder "
        "Forward Identity Implicit Neumann Nystrom OneStep Penalty Sama Score "
        "ScoreFunction Soba Unroll"
    ),
    "optimizers": ("Choice Descent Grid MirrorDescent Normal Random Schedule Search Uniform"),
    "runs.python": "load resume run",
    "files.errors": "ConfigError",
    "runs.result": "Result",
}
_PLACES = {name: (module, name) for module, names in _MODULES.items() for name in names.split()}
_PLACES["check"] = ("testing.check", "check_hypergradient")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'metaopt' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(f"metaopt.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
