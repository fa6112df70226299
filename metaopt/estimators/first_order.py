"""First-order meta-learning of an initial value."""

from __future__ import annotations

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator
from metaopt.estimators.inner_run import Result, require_gradients
from metaopt.estimators.task_average import TaskAverage


class FirstOrder(TaskAverage):
    """dF/dtheta' read as dF/dphi, plus the direct term, when theta starts as a copy of phi.

    theta' is where K inner steps from theta = phi end. The derivative of theta' with respect to
    phi, prod_k (I - lr H_k) for SGD, is taken to be the identity. Scale: free of the inner
    learning rate.

    Args:
        inner_steps: number K of inner steps, >= 0; 0 trains phi on F itself, without adaptation.
        tasks: number B of tasks whose hypergradients are averaged, >= 1; see `Unroll`.

    Cost: K + 1 gradients for each task.

    Raises:
        ValueError: the problem starts warm, so theta does not start at phi.
        ValueError: theta_0 is not phi, in value.
        TypeError: a parameter of theta has no namesake of its shape in phi.

    Reference: Finn et al., MAML, ICML 2017 (first-order approximation); Nichol et al.,
    arXiv 1803.02999, 2018.

    Example:
        >>> import torch
        >>> from metaopt import SGD, Descent, FirstOrder, GradientProblem, run
        >>> class Adaptation(GradientProblem):
        ...     inner_optimizer, warm_start = SGD(lr=0.1), False
        ...     init_outer = lambda self, generator: {"x": torch.ones(1)}
        ...     init_params = lambda self, outer, generator: dict(outer)
        ...     inner_batch = outer_batch = lambda self, draw: None
        ...     inner_loss = outer_loss = lambda self, phi, theta, batch: theta["x"].square().sum()
        >>> run(Adaptation(), FirstOrder(), Descent(lr=0.1), 20, progress=False).outer["x"] < 0.05
        tensor([True])
    """

    least_steps = 0
    carries_start = True  # in a first-order approximation
    differentiates_inner = False

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        require_gradients(loop, type(self).__name__, self.differentiates_inner)
        check_fork(loop, "FirstOrder")
        super().check(loop)

    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the adapted state and its outer gradient."""
        inner = loop.run(outer, inner, key, self.inner_steps)
        value, v, direct = self.outer_gradients(loop, outer, inner, key)
        grad = tree.add(direct, loop.total(v))
        return self.result(inner, value, grad, gradients=self.inner_steps + 1)


def check_fork(loop: InnerLoop, estimator: str) -> None:
    """Raise an error unless theta starts as a copy of phi in every run."""
    name = type(loop.problem).__name__
    if loop.problem.warm_start:
        raise ValueError(
            f"{estimator} needs theta to start at phi in every outer step; {name} has "
            f"warm_start=True. Set it to False, or use estimator=unroll or implicit."
        )
    outer = loop.problem.init_outer(generator(0))
    for key, value in loop.initial(outer, 0).params.items():
        if key not in outer or outer[key].shape != value.shape:
            match = tuple(outer[key].shape) if key in outer else "nothing of that name"
            raise TypeError(
                f"{estimator} needs theta to be a copy of phi, name by name; {name} has theta "
                f"{key!r} of shape {tuple(value.shape)} and phi holds {match}. Let init_params "
                f"copy the outer variable, or use estimator=unroll."
            )
        if not torch.equal(outer[key], value):
            raise ValueError(
                f"{estimator}: theta_0 must equal phi, and {name} starts {key!r} at another "
                f"value. Use estimator=unroll, which differentiates the start."
            )
