"""Only what the meta-objective says of phi itself."""

from __future__ import annotations

import torch

from metaopt.engine import tree
from metaopt.engine.inner import GradientProblem, GradientState, require_gradients, run
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold
from metaopt.estimators.stateless import Stateless


class Direct(Stateless):
    """The partial derivative dF/dphi at the theta that K inner steps reach; theta is held fixed.

    Exact where phi does not move the inner minimum, or where the method is defined so: the ascent
    of group DRO and of DoReMi on weighted losses. Zero where F does not contain phi, so that a
    gradient optimizer keeps phi where it starts: a control with fixed weights, on the same loop
    and for the price of the inner level.

    Args:
        inner_steps: number K of inner steps, >= 0.

    Cost: K gradients and one evaluation of F, with a reverse pass only through what depends on phi.

    Reference: Sagawa et al., group DRO, ICLR 2020.
    """

    def __init__(self, inner_steps: int = 1) -> None:
        if inner_steps < 0:
            raise ValueError(f"Direct needs inner_steps >= 0; got {inner_steps}.")
        self.inner_steps = inner_steps

    def __call__(
        self, problem: GradientProblem, outer: Tree, inner: GradientState, key: int
    ) -> tuple[GradientState, Feedback]:
        """Return the inner state after K steps and the partial derivative there."""
        require_gradients(problem, "Direct")
        inner = run(problem, outer, inner, key, self.inner_steps)
        phi = tree.leaves(outer)
        value = problem.outer_value(phi, inner.params, inner.buffers, fold(key, "outer"))
        grad = tree.zeros_like(outer)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(phi.values()), materialize_grads=True)
            grad = tree.like(phi, found)
        cost = {"inner_steps": self.inner_steps, "gradients": self.inner_steps, "evaluations": 1}
        return inner, Feedback(value.detach(), grad, metrics={"inner/loss": inner.loss}, cost=cost)
