"""Implicit hypergradients from first derivatives only: a central difference along one direction."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import eager
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.constants import RecordDetached, ReplayDetached
from metaopt.estimators.held_fixed import Held
from metaopt.estimators.inner_run import InnerRun, Result
from metaopt.estimators.trial import try_outer_step


class CentralDifference(InnerRun):
    """dF/dphi - J^T w with J = d2g/dtheta dphi, by a central difference of dg/dphi along w.

    Attributes:
        direction_gradients: gradients that `direction` costs.
    """

    stacks = True
    least_steps = 0
    needs_precision = ("theta", "phi")
    direction_gradients: ClassVar[int] = 0

    def __init__(self, epsilon: float | None = None, inner_steps: int = 1) -> None:
        super().__init__(inner_steps)
        self.epsilon = epsilon
        check_ranges(self, "epsilon > 0 or null")

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        super().check(loop)
        if loop.half_precision and loop.problem.compute_dtype is None:
            name, dtypes = type(loop.problem).__name__, ", ".join(map(str, loop.half_precision))
            raise ValueError(
                f"inner_loss of {name} computes in {dtypes}, which decides the radius of "
                f"{type(self).__name__}'s difference: set {name}.compute_dtype to it, or use "
                f"estimator=unroll or one_step."
            )
        # A difference repeats the calls of a loss, which hooks on gradients make others.
        ways = "Use estimator=unroll or one_step, or take hooks on gradients out of the module"
        try_outer_step(self, loop, ways)

    @abstractmethod
    def direction(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, v: Tree, draw: Draw, batch: Batch
    ) -> Tree:
        """Return w from v = dF/dtheta."""

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the hypergradient there."""
        inner = loop.run(outer, inner, key, self.inner_steps)
        value, v, direct = self.outer_gradients(loop, outer, inner, key)
        draw = loop.solve_draw(inner, key, self.inner_steps)
        batch = loop.batch(outer, inner.at(inner.params), draw)
        w = self.direction(loop, outer, inner, v, draw, batch)
        held = Held(loop, type(self).__name__, inner, state=True)
        cross = mixed_product(loop, outer, held, w, draw, batch, self.epsilon)
        grad = tree.add(direct, cross, -1.0)
        gradients = self.inner_steps + 1 + self.direction_gradients
        return self.result(inner, value, grad, gradients=gradients, evaluations=3)


class FiniteDifference(CentralDifference):
    """dF/dphi - [d/dphi g(phi, theta + e v) - d/dphi g(phi, theta - e v)] / 2e.

    v = dF/dtheta; the bracket tends to J^T v with J = d2g/dtheta dphi, so this is
    `Implicit(solve=Identity())` without a second derivative. It works with fused attention, and
    where g depends on phi through a weight per example the perturbed evaluations need no reverse
    pass through the model. Scale: free of the inner learning rate;
    carries the curvature, since the inverse Hessian is taken to be the identity.

    Both evaluations see the batch and the dropout masks of one key, the buffers as they were, and
    the unperturbed values of whatever g detaches. Parameters are perturbed in place and restored
    exactly, also after an exception.

    Args:
        epsilon: radius relative to the parameters, e = epsilon |theta| / |v|, > 0; `None` for
            6e-5 in float32, also of theta, phi or g alone, and 1e-7 in float64: within 2e-3 of
            the exact product from 1 k to 1 M parameters, where 1e-5 and 3e-4 are still within 5e-3
            of it. Where a problem says that float32 parameters are computed with in bfloat16
            (`compute_dtype`), 1e-3, where rounding remains: on a tiny transformer the median over
            12 keys is a cosine of .998 and an error of 12 % of the norm, the worst key .92 and
            45 %; 6e-5 falls to .7 and 1e-2 below 0. Average over outer steps or keys.
        inner_steps: number K of inner steps before the difference, >= 0.

    Cost: K + 1 gradients and 3 evaluations of g, two of them with a gradient in phi. Memory for
    the saved parameters and for v, which takes the place of the inner gradient: one copy more than
    the inner loop.

    Parameters or a phi of half precision, which rounds the difference away (10 to 190 % of error),
    are refused, and so is a g that computes in it without a `compute_dtype`.

    Traps: across ranks v is averaged before the product, since averaging hypergradients afterwards
    is not the same. A layer that is checkpointed and detaches inside is recomputed without the
    replay.

    Reference: Liu et al., DARTS, ICLR 2019.

    Example:
        >>> from metaopt import FiniteDifference, Identity, Implicit, check
        >>> from metaopt.problems.examples import Quadratic
        >>> estimators = {"difference": FiniteDifference(), "t1-t2": Implicit(Identity())}
        >>> rows = check(Quadratic(), estimators)
        >>> abs(rows[0].error - rows[1].error) < 1e-6
        True
    """

    def direction(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, v: Tree, draw: Draw, batch: Batch
    ) -> Tree:
        """Return v itself."""
        return v


def mixed_product(
    loop: InnerLoop, outer: Tree, held: Held, direction: Tree, draw: Draw, batch: Batch,
    epsilon: float | None,
) -> Tree:  # fmt: skip
    """Return J^T direction = d/dphi <dg/dtheta, direction> by a central difference in theta.

    `draw` seeds the masks. `held.inner.params` come back bit for bit.
    """
    inner = held.inner
    # Made outside the block, which counts the calls of the loss alone.
    phi, at = tree.leaves(outer), inner.at(tree.leaves(inner.params))
    with eager(), RecordDetached() as record:
        loss = loop.inner_value(phi, at, draw, batch)
    held.refuse_read("inner_loss", loss)
    rounds = loop.problem.compute_dtype, loss.dtype, *(value.dtype for value in phi.values())
    del loss  # and its graph
    radius = tree.radius(inner.params, direction, epsilon, *rounds)
    # A number is added without a copy of the direction.
    size = radius if radius.ndim else float(radius)
    # Perturbed in place: a second set of parameters would be one more copy. Adding and subtracting
    # leaves a rounding error, so the saved ones are copied back.
    params = list(inner.params.values())
    saved = [p.clone() for p in params]
    ends = []
    try:
        for sign in (1.0, -1.0):
            tree.add_(inner.params, direction, sign * size)
            # New tensors on the same memory: recurrent layers make other calls for weights that
            # they have seen, and the three evaluations must make the same.
            phi, at = tree.leaves(outer), inner.at(tree.detach(inner.params))
            with eager(), ReplayDetached(record.constants):
                loss = loop.inner_value(phi, at, draw, batch)
            ends += tree.gradient(loss, phi)
            torch._foreach_copy_(params, saved)
    finally:
        torch._foreach_copy_(params, saved)
    return tree.scale(tree.add(ends[0], ends[1], -1.0), 0.5 / size)
