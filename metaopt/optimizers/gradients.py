"""What optimizers that follow a hypergradient ask of the outer variable and of the feedback."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metaopt.engine.protocols import Feedback, Tree


def named_tensors(outer: Any, name: str) -> Tree:
    """Return phi, a dict of floating-point tensors.

    Args:
        outer: the outer variable.
        name: of the optimizer, for the message.

    Raises:
        TypeError: it is anything else.
    """
    if not isinstance(outer, dict) or not all(
        isinstance(v, Tensor) and v.is_floating_point() for v in outer.values()
    ):
        raise TypeError(
            f"{name} needs an outer variable of named floating-point tensors; "
            f"got {type(outer).__name__}. Use optimizer=search, random or schedule."
        )
    return outer


def hypergradient(feedback: Feedback, name: str) -> Tree:
    """Return the hypergradient.

    Raises:
        TypeError: the feedback has none.
    """
    if feedback.grad is None:
        raise TypeError(
            f"{name} needs feedback with a gradient, and this estimator gives none. Use "
            "optimizer=search, random or schedule, or an estimator with a hypergradient, such as "
            "estimator=finite_difference."
        )
    return feedback.grad
