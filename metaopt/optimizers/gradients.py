"""What optimizers that follow a hypergradient ask of the outer variable and of the feedback."""

from __future__ import annotations

from metaopt.engine.protocols import Feedback, Tree


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
