"""The exact derivative through one inner step, without differentiating twice."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metaopt.engine import distributed, tree
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.hyperparameters import learned
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.estimators.constants import along, tangent
from metaopt.estimators.inner_run import InnerRun, Result


class OneStep(InnerRun):
    """dF/dphi - d/dphi <dg/dtheta(phi, theta), w> with w = -(du/dgrad)^T dF/dtheta'.

    theta' = u(theta, dg/dtheta) is one step of the actual inner optimizer, so w = lr * dF/dtheta'
    for SGD, and the result equals `Unroll(1)` to round-off for every optimizer. The inner product
    is the directional derivative of g along w: one forward-mode evaluation, whose reverse pass
    goes through the part of g that depends on phi, not through theta. Scale: carries the inner
    learning rate.

    Args:
        inner_steps: number K of inner steps, >= 1; the derivative is through the last one.

    Where phi decides hyperparameters of the inner optimizer, dF/dtheta' du/dphi is added.

    Cost: K + 1 gradients and one forward-mode evaluation of g (about 2 forward passes).

    Raises:
        ValueError: from `check`, when theta_0 is made from phi (`warm_start=False`), or a buffer
            that F reads is computed from phi: this derivative would miss it; use `Unroll`.
        NotImplementedError: from torch, when an operation of g has no forward-mode derivative;
            use `Unroll(1)` there.

    References: Pham et al., Meta Pseudo Labels, CVPR 2021 (the one-step hypergradient);
    Liu et al., DARTS, ICLR 2019.

    Example:
        >>> from metaopt import OneStep, Unroll, check
        >>> from metaopt.problems.examples import Quadratic
        >>> rows = check(Quadratic(), {"one step": OneStep(), "unroll": Unroll(inner_steps=1)})
        >>> abs(rows[0].error - rows[1].error) < 1e-6
        True
    """

    stacks = True
    carries_state = True
    second_derivatives = "forward"
    carries_optimizer = True
    misses_buffers_of = ("phi",)  # theta before the step, of which buffers are made, is fixed

    @property
    def carried_steps(self) -> int:
        """How many of the last inner steps are differentiated."""
        return 1

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the derivative through the last."""
        inner = loop.run(outer, inner, key, self.inner_steps - 1)
        draw = loop.draw(inner, key, self.inner_steps - 1)
        batch = loop.batch(outer, inner, draw)
        after, _, transpose = take_step(loop, outer, inner, draw, batch)
        value, v, direct = self.outer_gradients(loop, outer, after, key, before=inner.state)

        w, through_rates = transpose(v)
        phi = tree.leaves(outer)
        # <dg/dtheta, w> is the derivative of g along w: forward in theta, then reverse in phi.
        with along(inner.params, w) as theta:
            loss = loop.inner_value(phi, inner.at(theta), draw, batch)
            slope = tangent(loss)
        grad = tree.add(direct, through_rates) if through_rates else direct
        if slope is not None and slope.requires_grad:
            grad = tree.add(grad, tree.gradient(slope, phi)[0], -1.0)
        return self.result(after, value, grad, gradients=self.inner_steps + 1, hvps=1)


def take_step(
    loop: InnerLoop, outer: Tree, inner: GradientState, draw: Draw, batch: Batch
) -> tuple[GradientState, Tree, Callable[[Tree], tuple[Tree, Tree]]]:
    """Return the state one step on, the gradient it used, and v -> (w, (du/dphi)^T v).

    w = -(du/dgrad)^T v. du/dphi is that of the optimizer's hyperparameters, and its product is
    empty where phi decides none of them. The old parameters stay as they are.
    """
    params = tree.leaves(inner.params)
    copied = inner.at(params)
    loss = loop.inner_value(tree.detach(outer), copied, draw, batch)
    parts = torch.autograd.grad(tree.total(loss), list(params.values()), allow_unused=True)
    here = {k: part is not None for k, part in zip(params, parts, strict=True)}
    read = distributed.on_any_rank(here, loss)
    slopes = [
        torch.zeros_like(p) if part is None else part
        for p, part in zip(params.values(), parts, strict=True)
    ]
    # New leaves: `transpose` differentiates the optimizer's update alone, not g a second time.
    grads = tree.leaves(distributed.mean(tree.like(params, slopes)))
    phi = tree.leaves(outer)
    optimizer = loop.optimizer(phi, inner.step)
    new, moments = optimizer.update(inner.params, grads, inner.optimizer, inner.step)
    moved = tree.detach(copied._replace(params=new, optimizer=moments))
    with torch.no_grad():
        after = loop.stepped(outer, moved, loss)

    def transpose(v: Tree) -> tuple[Tree, Tree]:
        inputs = [*grads.values(), *(phi.values() if learned(optimizer) else ())]
        pulled = vjp([*new.values()], inputs, [v[k] for k in new])
        negative, through_rates = torch._foreach_neg(pulled[: len(grads)]), pulled[len(grads) :]
        # Where g does not read a parameter, J has no entry, and Adam's du/dgrad is lr / eps: along
        # a w with it, a finite difference would see nothing else.
        w = {
            k: t if read[k] else torch.zeros_like(t) for k, t in tree.like(grads, negative).items()
        }
        return w, tree.like(phi, through_rates) if through_rates else {}

    return after, tree.detach(grads), transpose
