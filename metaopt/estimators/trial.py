"""One outer step of an estimator before a run, for derivatives that torch does not have."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator, replay

if TYPE_CHECKING:
    from metaopt.estimators.inner_run import InnerRun


def try_outer_step(estimator: InnerRun, loop: InnerLoop, instead: str) -> None:
    """Raise a `ValueError` where torch lacks a derivative that an estimator takes of a problem.

    For what `check_second_derivatives` does not try: torch has combinations of reverse passes and
    of forward mode for some operations and memory layouts alone, which only a try tells. What
    depends on values says nothing of later states, and is left to the run.

    Args:
        estimator: what is tried, with one inner step.
        loop: the inner level.
        instead: what to do where it fails, for the message.
    """
    trial, problem = copy.deepcopy(estimator), loop.problem
    trial.inner_steps = min(trial.inner_steps, 1)
    try:
        with replay(0):
            outer = problem.init_outer(generator(0))
            trial.estimate(loop, outer, loop.start(outer, None, 0), 0)
    except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return
    except RuntimeError as error:
        raise ValueError(
            f"{type(estimator).__name__} cannot differentiate the losses of "
            f"{type(problem).__name__}: {first_line(error)}. {instead}."
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error of torch says, without its notes and the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
