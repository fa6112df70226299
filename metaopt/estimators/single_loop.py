"""What SOBA, SABA and SRBA share: one step each of theta, of the adjoint q and of phi."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.finite import Finite
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_ranges
from metaopt.engine.schedules import Schedule
from metaopt.estimators.held_fixed import Held
from metaopt.estimators.implicit import inner_slope, pull_back
from metaopt.estimators.inner_run import InnerRun, Result, largest


class Terms(NamedTuple):
    """The derivatives that the three directions are sums of, at one (phi, theta, q).

    Args:
        slope: dg/dtheta, along which theta is stepped.
        product: H q.
        cross: J^T q.
        v: dF/dtheta.
        direct: dF/dphi.
    """

    slope: Tree
    product: Tree
    cross: Tree
    v: Tree
    direct: Tree


class Evaluation(NamedTuple):
    """Terms on one batch of g and one of F, with the two losses."""

    terms: Terms
    inner_loss: Tensor
    outer_loss: Tensor


class SingleLoop(InnerRun):
    """theta <- u(theta, slope);  q <- q - step (H q - v);  hypergradient direct - J^T q.

    All derivatives are taken at the same (phi, theta, q); phi is stepped by the outer optimizer.

    Args:
        step: step size of q, > 0, or `None` for the inner learning rate of the moment, its schedule
            included.
        schedule: factor on `step` by inner step, or `None`; of a step that is given.
    """

    stacks = True
    needs_stationarity = True
    carries_optimizer = True
    memory: tuple[str, ...] = ("q",)
    second_derivatives = "reverse"
    needs_blocks = False
    """Whether the batches must be blocks of a fixed partition, `metaopt.Finite`."""

    def __init__(self, step: float | None = None, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.step, self.schedule = step, schedule
        check_ranges(self, "step > 0 or null", "schedule or null")
        if schedule is not None and step is None:
            raise ValueError(
                f"{type(self).__name__}(schedule=...) is a factor on its own step, and step=null "
                f"follows the inner learning rate, whose schedule is that of inner_optimizer; set "
                f"step, or drop the schedule."
            )
        self._q: Tree | None = None

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        super().check(loop)
        if self.needs_blocks:
            require_finite(loop, type(self).__name__)

    @abstractmethod
    def directions(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, q: Tree, key: int
    ) -> tuple[Evaluation, dict[str, float]]:
        """Return what all three are stepped along, and the cost in gradients and products."""

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after one step and the hypergradient before it."""
        q = tree.zeros_like(inner.params) if self._q is None else self._q
        (terms, inner_loss, outer_loss), cost = self.directions(loop, outer, inner, q, key)
        residual = tree.add(terms.product, terms.v, -1.0)
        self._q = tree.add(q, residual, -self._rate(loop, outer, inner.step))
        inner = loop.step_along(outer, inner, terms.slope, inner_loss)
        metrics = {"solve/residual": tree.relative_norm(residual, terms.v)}
        grad = tree.add(terms.direct, terms.cross, -1.0)
        return self.result(inner, outer_loss, grad, metrics, **cost)

    def _rate(self, loop: InnerLoop, outer: Tree, step: int) -> float | Tensor:
        if self.step is None:
            rate = loop.optimizer(outer, step).learning_rate(step)
            return rate.detach() if isinstance(rate, Tensor) else rate
        return self.step * (1.0 if self.schedule is None else self.schedule(step))

    def evaluated(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, q: Tree, key: int
    ) -> Evaluation:
        """Return the terms on the batches of an outer step, averaged over ranks but in phi.

        A module updates its buffers; pass `inner.at(params)` to leave them as they are.
        """
        value, v, direct = self.outer_gradients(loop, outer, inner, key)
        (slope, product, cross), loss = self.inner_terms(
            loop, outer, inner, q, loop.draw(inner, key, 0)
        )
        return Evaluation(Terms(slope, product, cross, v, direct), loss, value)

    def inner_terms(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, q: Tree, draw: Draw
    ) -> tuple[tuple[Tree, Tree, Tree], Tensor]:
        """Return dg/dtheta, H q and J^T q, and g on the batch of a draw."""
        phi, theta = tree.leaves(outer), tree.leaves(inner.params)
        with twice_differentiable():
            held = Held(loop, type(self).__name__, inner._replace(params=theta), state=True)
            loss, slope = inner_slope(loop, phi, held.inner, draw)
            held.refuse_read("inner_loss", loss)
            stationary = loop.optimizer(phi, inner.step).stationary_gradient(theta, slope)
            products = pull_back(stationary, [*theta.values(), *phi.values()], q)
        product = distributed.mean(tree.like(theta, products[: len(theta)]))
        cross = tree.like(phi, products[len(theta) :])
        return (tree.detach(slope), product, cross), loss.detach()

    def divergence(self, feedback: Feedback) -> str:
        """Return a clause that names what diverged, or nothing, for feedback that is not finite."""
        # Where theta has diverged by itself, v has grown with it, and the residual is of order 1.
        residual = largest(feedback.metrics["solve/residual"])
        if residual < 1e3 or not math.isfinite(largest(feedback.value)):
            return super().divergence(feedback)
        step = "inner_optimizer.lr" if self.step is None else self.step
        return (
            f": {type(self).__name__}'s adjoint q has diverged (step={step}); set "
            f"estimator.step below 2 / (largest eigenvalue of the inner Hessian), or use "
            f"estimator=implicit where the inner loss has negative curvature"
        )


def require_finite(loop: InnerLoop, estimator: str) -> Finite:
    """Return the problem, if its batches are blocks of a fixed partition.

    Raises:
        TypeError: they are not.
        ValueError: what a batch says depends on more than the block: labels that are sampled, or
            processes that draw blocks of their own.
    """
    problem: GradientProblem = loop.problem
    kind, name = type(problem), type(problem).__name__
    if not isinstance(problem, Finite):
        raise TypeError(
            f"{estimator} has to know which batch it draws, and {name} says nothing of it. Make it "
            f"a metaopt.Finite problem (inner_batches, inner_batch_at, outer_batches, "
            f"outer_batch_at), or use estimator=soba."
        )
    for method in ("inner_batch", "outer_batch"):
        if getattr(kind, method) is not getattr(Finite, method):
            raise ValueError(
                f"{estimator} needs batches that are blocks of the data, and {name}.{method} "
                f"replaces that of Finite. Drop it, or use estimator=soba."
            )
    if loop.prepares_batches:
        raise ValueError(
            f"{estimator} needs batches that say the same whenever they are drawn, and "
            f"{name}.prepare_batch adds to them. Use estimator=soba."
        )
    if distributed.world_size() > 1 and distributed.share_of_batch()[1] == 1:
        raise ValueError(
            f"{estimator} needs processes that draw the same blocks: start the command with "
            f"ranks=split, or use estimator=soba."
        )
    return problem
