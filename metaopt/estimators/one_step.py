"""The exact derivative through one inner step, without differentiating twice."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metaopt.engine import distributed, tree
from metaopt.engine.inner import (
    Batch,
    GradientProblem,
    GradientState,
    require_fixed_start,
    require_gradients,
    run,
)
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold
from metaopt.estimators.stateless import Stateless
from metaopt.estimators.tangents import along, tangent


class OneStep(Stateless):
    """dF/dphi - d/dphi <dg/dtheta(phi, theta), w> with w = -(du/dgrad)^T dF/dtheta'.

    theta' = u(theta, dg/dtheta) is one step of the actual inner optimizer, so w = lr * dF/dtheta'
    for SGD, and the result equals `Unroll(1)` to round-off for every optimizer. The inner product
    is the directional derivative of g along w: one forward-mode evaluation, whose reverse pass
    goes through the part of g that depends on phi, not through theta. Scale: carries the inner
    learning rate.

    Args:
        inner_steps: number K of inner steps, >= 1; the derivative is through the last one.

    Cost: K + 1 gradients and one forward-mode evaluation of g (about 2 forward passes).

    Raises:
        ValueError: on the call, when theta_0 is made from phi (`warm_start=False`): this
            derivative would miss it; use `Unroll`.
        NotImplementedError: from torch, when an operation of g has no forward-mode derivative;
            use `Unroll(1)` there.

    References: Pham et al., Meta Pseudo Labels, CVPR 2021 (the one-step hypergradient);
    Liu et al., DARTS, ICLR 2019.
    """

    def __init__(self, inner_steps: int = 1) -> None:
        if inner_steps < 1:
            raise ValueError(f"OneStep needs inner_steps >= 1; got {inner_steps}.")
        self.inner_steps = inner_steps

    def __call__(
        self, problem: GradientProblem, outer: Tree, inner: GradientState, key: int
    ) -> tuple[GradientState, Feedback]:
        """Return the inner state after K steps and the derivative through the last."""
        require_gradients(problem, "OneStep")
        require_fixed_start(problem, outer, inner, key, "OneStep")
        last = self.inner_steps - 1
        inner = run(problem, outer, inner, key, last)
        step_key = fold(key, last)
        batch = problem.draw(outer, inner.params | inner.buffers, step_key)
        after, _, transpose = take_step(problem, outer, inner, step_key, batch)
        value, v, direct = outer_gradients(problem, outer, after, fold(key, "outer"))

        phi = tree.leaves(outer)
        with along(inner.params, transpose(v)) as theta:
            loss = problem.inner_value(phi, theta, tree.clone(inner.buffers), step_key, batch)
            slope = tangent(loss)
        grad = direct
        if slope is not None and slope.requires_grad:
            cross = torch.autograd.grad(slope, list(phi.values()), materialize_grads=True)
            grad = tree.add(direct, tree.like(phi, cross), -1.0)
        cost = {"inner_steps": self.inner_steps, "gradients": self.inner_steps + 1, "hvps": 1}
        return after, Feedback(value, grad, metrics={"inner/loss": after.loss}, cost=cost)


def take_step(
    problem: GradientProblem, outer: Tree, inner: GradientState, key: int, batch: Batch
) -> tuple[GradientState, Tree, Callable[[Tree], Tree]]:
    """Return the state one step on, the gradient it used, and v -> w = -(du/dgrad)^T v.

    The old parameters stay as they are.
    """
    params, buffers = tree.leaves(inner.params), tree.clone(inner.buffers)
    loss = problem.inner_value(tree.detach(outer), params, buffers, key, batch)
    found = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
    grads = tree.leaves(distributed.mean(tree.like(params, found)))
    new, moments = problem.inner_optimizer.update(inner.params, grads, inner.optimizer, inner.step)
    with torch.no_grad():
        buffers = problem.carry(outer, tree.detach(new), buffers, inner.step + 1)
    after = GradientState(
        tree.detach(new), buffers, tree.detach(moments), inner.step + 1, loss.detach()
    )

    def transpose(v: Tree) -> Tree:
        found = torch.autograd.grad(
            list(new.values()), list(grads.values()), [-v[k] for k in new], materialize_grads=True
        )
        return tree.like(grads, found)

    return after, tree.detach(grads), transpose


def outer_gradients(
    problem: GradientProblem, outer: Tree, inner: GradientState, key: int
) -> tuple[torch.Tensor, Tree, Tree]:
    """Return F, v = dF/dtheta averaged over ranks, and the direct dF/dphi."""
    phi, theta = tree.leaves(outer), tree.leaves(inner.params)
    loss = problem.outer_value(phi, theta, inner.buffers, key)
    if not loss.requires_grad:
        return loss, tree.zeros_like(theta), tree.zeros_like(phi)
    found = torch.autograd.grad(loss, [*theta.values(), *phi.values()], materialize_grads=True)
    v, direct = tree.like(theta, found[: len(theta)]), tree.like(phi, found[len(theta) :])
    return loss.detach(), distributed.mean(v), direct
