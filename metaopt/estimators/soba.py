"""A single loop: parameters, adjoint and outer variable move together."""

from __future__ import annotations

import math

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.held_fixed import Held
from metaopt.estimators.implicit import inner_slope, pull_back
from metaopt.estimators.inner_run import InnerRun, Result, largest


class Soba(InnerRun):
    """One step each on theta, on the adjoint q and, by the outer optimizer, on phi.

    theta <- u(theta, dg/dtheta);  q <- q - step (H q - v);  hypergradient dF/dphi - J^T q,
    all at the same (phi, theta, q) and from one graph of dg/dtheta: H = d2g/dtheta2,
    J = d2g/dtheta dphi, v = dF/dtheta. q tends to H^-1 v as theta and phi settle.
    Scale: free of the inner learning rate.

    Args:
        step: step size of q, 0 < step < 2 / (largest eigenvalue of H), or `None` for the inner
            learning rate of the moment, which suits plain SGD.

    Cost: about 4.2 gradients: one with a graph, one product for both derivatives, one of F.

    H is that of g plus the inner optimizer's weight decay, and needs to be positive definite near
    the solution: elsewhere, and with a step that is too large, q grows without bound. The metric
    `solve/residual` |H q - v| / |v| shows it. With a rate tuned for Adam or for momentum set
    `step`.

    Reference: Dagréou et al., A framework for bilevel optimization, NeurIPS 2022.

    Example:
        >>> from metaopt import Soba, check
        >>> from metaopt.problems.examples import Quadratic
        >>> cold, warm = check(Quadratic(), {"soba": Soba()}, warm_steps=50)
        >>> cold.error, warm.error < 0.2
        (1.0, True)
    """

    stacks = True
    needs_stationarity = True
    carries_optimizer = True
    memory = ("q",)
    second_derivatives = "reverse"

    def __init__(self, step: float | None = None) -> None:
        super().__init__()
        self.step = step
        check_ranges(self, "step > 0 or null")
        self._q: Tree | None = None

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after one step and the hypergradient before it."""
        value, v, direct = self.outer_gradients(loop, outer, inner, key)
        q = tree.zeros_like(v) if self._q is None else self._q
        phi, theta = tree.leaves(outer), tree.leaves(inner.params)
        with twice_differentiable():
            # The step is taken on this evaluation, so the module updates the state's own buffers.
            held = Held(loop, "Soba", inner._replace(params=theta), state=True)
            loss, slope = inner_slope(loop, phi, held.inner, loop.draw(inner, key, 0))
            held.refuse_read("inner_loss", loss)
            optimizer = loop.optimizer(phi, inner.step)
            stationary = optimizer.stationary_gradient(theta, slope)
            products = pull_back(stationary, [*theta.values(), *phi.values()], q)
        curved = distributed.mean(tree.like(theta, products[: len(theta)]))
        cross = tree.like(phi, products[len(theta) :])
        residual = tree.add(curved, v, -1.0)
        rate = self.step or optimizer.learning_rate(inner.step)
        self._q = tree.add(q, residual, -rate)
        inner = loop.step_along(outer, inner, tree.detach(slope), loss)
        metrics = {"solve/residual": tree.relative_norm(residual, v)}
        grad = tree.add(direct, cross, -1.0)
        return self.result(inner, value, grad, metrics, gradients=2, hvps=1)

    def divergence(self, feedback: Feedback) -> str:
        """Return a clause that names what diverged, or nothing, for feedback that is not finite."""
        # Where theta has diverged by itself, v has grown with it, and the residual is of order 1.
        residual = largest(feedback.metrics["solve/residual"])
        if residual < 1e3 or not math.isfinite(largest(feedback.value)):
            return super().divergence(feedback)
        step = "inner_optimizer.lr" if self.step is None else self.step
        return (
            f": Soba's adjoint q has diverged (step={step}); set "
            f"estimator.step below 2 / (largest eigenvalue of the inner Hessian), or use "
            f"estimator=implicit where the inner loss has negative curvature"
        )
