"""What estimators refuse when the engine is made, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator


def require_gradients(loop: Any, estimator: str, through_decisions: bool = True) -> None:
    """Raise an error that says what to use instead unless g can be differentiated in phi.

    Args:
        loop: the inner level.
        estimator: who asks, for the message.
        through_decisions: whether the estimator differentiates what g owes to decisions of phi.

    Raises:
        TypeError: the problem states no losses.
        ValueError: the problem's decisions have no derivative.
    """
    problem = loop.problem
    if not isinstance(loop, InnerLoop):
        raise TypeError(
            f"{estimator} needs a GradientProblem (inner_loss, outer_loss, inner_batch, "
            f"outer_batch); {type(problem).__name__} is none. Use estimator=score, or "
            f"estimator=evolution_strategies for a tensor-valued outer variable."
        )
    if through_decisions and problem.hard_decisions:
        raise ValueError(
            f"the inner loss of {type(problem).__name__} is on decisions without a derivative: "
            f"{estimator} would see no feedback. Use estimator=score_function, or let the problem "
            f"make no hard decisions (problem.labels=soft)."
        )


def refuse_start_from_outer(loop: InnerLoop, estimator: str) -> None:
    """Raise a `ValueError` if each run starts from a theta_0 made of phi."""
    if loop.problem.warm_start:
        return
    params, _ = loop.initial(tree.leaves(loop.problem.init_outer(generator(0))), 0)
    if any(t.requires_grad for t in params.values()):
        raise ValueError(
            f"{estimator} holds theta_0 fixed, and {type(loop.problem).__name__} makes it from "
            f"the outer variable (warm_start=False): its derivative would be missing. Use "
            f"estimator=unroll, forward or first_order."
        )


def refuse_state(loop: InnerLoop, estimator: str) -> None:
    """Raise a `ValueError` if a loss reads a state that inner steps change.

    Found by one evaluation of both losses with a derivative in the state.
    """
    if not loop.updates_state:
        return
    outer = loop.problem.init_outer(generator(0))
    inner = loop.start(outer, None, 0)
    state = tree.map_tensors(tree.leaf, inner.state)
    leaves = [t for t in tree.tensors(state) if t.requires_grad]
    at = inner.at(inner.params)._replace(state=state)
    losses: dict[str, Callable[[], Tensor]] = {
        "inner_loss": lambda: loop.inner_value(outer, at, loop.draw(inner, 0, 0)),
        "outer_loss": lambda: loop.outer_value(outer, at, loop.outer_draw(inner, 0)),
    }
    for name, value in losses.items():
        loss = value()
        if not (leaves and loss.requires_grad):
            continue
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
        if any(slope is not None for slope in slopes):
            raise ValueError(
                f"{estimator} cannot carry the derivative of a state, and {name} of "
                f"{type(loop.problem).__name__} reads one that update_state computes. Use "
                f"estimator=unroll, forward or one_step, or detach the state in {name}."
            )
