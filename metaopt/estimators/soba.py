"""A single loop: parameters, adjoint and outer variable move together."""

from __future__ import annotations

import dataclasses

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.schedules import Schedule
from metaopt.estimators.inner_run import Result
from metaopt.estimators.single_loop import Evaluation, SingleLoop


class Soba(SingleLoop):
    """One step each on theta, on the adjoint q and, by the outer optimizer, on phi.

    theta <- u(theta, dg/dtheta);  q <- q - step (H q - v);  hypergradient D = dF/dphi - J^T q,
    all at the same (phi, theta, q) and from one graph of dg/dtheta: H = d2g/dtheta2,
    J = d2g/dtheta dphi, v = dF/dtheta. q tends to H^-1 v as theta and phi settle.
    Scale: free of the inner learning rate.

    With `average` = a it is MA-SOBA: the hypergradient is r <- (1 - a) r + a D, which starts at the
    first D; where phi moves slowly, its variance is about a / 2 that of D.

    Args:
        step: step size of q, 0 < step < 2 / (largest eigenvalue of H), or `None` for the inner
            learning rate of the moment, which suits plain SGD.
        schedule: factor on `step` by inner step, such as `PowerDecay(0.5)`, or `None`.
        average: weight a of the newest hypergradient, in (0, 1], or `None` for D itself.

    Cost: about 4.2 gradients: one with a graph, one product for both derivatives, one of F.

    H is that of g plus the inner optimizer's weight decay, and needs to be positive definite near
    the solution: elsewhere, and with a step that is too large, q grows without bound. The metric
    `solve/residual` |H q - v| / |v| shows it. With a rate tuned for Adam or for momentum set
    `step`.

    References: Dagréou et al., A framework for bilevel optimization, NeurIPS 2022; Chen, Xiao and
    Balasubramanian, Optimal algorithms for stochastic bilevel optimization (MA-SOBA),
    arXiv 2306.12067, 2023.

    Example:
        >>> from metaopt import Soba, check
        >>> from metaopt.problems.examples import Quadratic
        >>> cold, warm = check(Quadratic(), {"soba": Soba()}, warm_steps=50)
        >>> cold.error, warm.error < 0.2
        (1.0, True)
    """

    def __init__(
        self,
        step: float | None = None,
        schedule: Schedule | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(step, schedule)
        self.average = average
        check_ranges(self, "0 < average <= 1 or null")
        if average is not None:
            self.memory = ("q", "mean")
        self._mean: Tree | None = None

    def directions(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, q: Tree, key: int
    ) -> tuple[Evaluation, dict[str, float]]:
        """Return the terms on the batches of this step."""
        return self.evaluated(loop, outer, inner, q, key), {"gradients": 2, "hvps": 1}

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after one step and the hypergradient before it."""
        inner, feedback = super().estimate(loop, outer, inner, key)
        if self.average is None or feedback.grad is None:
            return inner, feedback
        # Over ranks, too: a checkpoint has the mean of one of them for all.
        newest = distributed.mean(feedback.grad)
        mean = newest if self._mean is None else self._mean
        self._mean = tree.add(mean, tree.add(newest, mean, -1.0), self.average)
        return inner, dataclasses.replace(feedback, grad=self._mean)
