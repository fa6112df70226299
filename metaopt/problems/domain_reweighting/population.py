"""A population of inner models in one batch, of staggered ages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_optimizers import Adam
from metaopt.engine.random import fold, generator
from metaopt.engine.stacked_adam import StackedAdam
from metaopt.problems.domain_reweighting.task import ReweightingTask

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting


def population(task: ReweightingTask) -> int | None:
    """Return the number R of models that a task trains, `None` where its losses have no axis."""
    params, buffers = task.init(generator(0))
    with torch.no_grad():
        losses = task.row_losses(params | buffers, torch.zeros(1, dtype=torch.long), False)
    return len(losses) if losses.ndim > 1 else None


def check_refresh(problem: DomainReweighting) -> None:
    """Raise a `ValueError` unless single models of the population can be initialised again."""
    models, optimizer = problem.models_trained, problem.inner_optimizer
    params, buffers = problem.task.init(generator(0))
    if models is None or models < 2 or buffers or any(len(p) != models for p in params.values()):
        raise ValueError(
            f"refresh={problem.refresh} initialises one model of a population again: the task must "
            f"train two or more models, along the first axis of all parameters, without buffers. "
            f"Set the task's `models`, or refresh=0."
        )
    if isinstance(optimizer, Adam) and not isinstance(optimizer, StackedAdam):
        raise ValueError(
            f"refresh={problem.refresh} needs an optimizer that counts each model's own steps: "
            f"under the shared counter of {type(optimizer).__name__} the first step of a new model "
            f"is 3.2 times too long. Set inner_optimizer._target_="
            f"metaopt.engine.stacked_adam.StackedAdam."
        )


def first_ages(models: int, life: int) -> Tensor:
    """Return the inner step at which each model counts as initialised, <= 0, (R,): staggered."""
    return -(torch.arange(models) * life // models)


def refresh_(problem: DomainReweighting, inner: GradientState) -> None:
    """Initialise the models again that are `problem.refresh` inner steps old, in place.

    Parameters and moments of such a model are those of a new one, drawn with a key of the seed, the
    inner step and the model; the other models keep their bits.
    """
    born = inner.state["born"]
    for r in (inner.step - born >= problem.refresh).nonzero().flatten().tolist():
        key = fold(problem.seed, "refresh", inner.step, r)
        params, _ = problem.task.init(generator(key))
        moments = problem.inner_optimizer.init(params)
        for old, new in (
            (inner.params, params),
            *((inner.optimizer[k], moments[k]) for k in moments),
        ):
            for name, value in new.items():
                old[name][r] = value[r]
        born[r] = inner.step
