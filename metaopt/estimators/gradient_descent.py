"""Gradient descent as a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.solvers import Product, Solution, State, positive


@dataclass(frozen=True)
class GradientDescent:
    """q <- q - step (H q - v), `iterations` times: descent on q^T H q / 2 - q^T v.

    From the previous outer step's solution, as in AmIGO, or from 0, where it is the truncated
    Neumann series of as many terms. Products may be on batches of their own
    (`Implicit(fresh_batches=True)`): the noise averages out over outer steps.

    Args:
        iterations: >= 1; each costs one product, the first one from 0 none.
        step: step size, 0 < step < 2 / (largest eigenvalue of H).
        warm_start: whether to start from the previous solution.

    Metrics: `solve/residual` |v - H q| / |v| before the last step.

    Raises:
        ValueError: from a call, when the residual has grown beyond twice that of the start and of
            q = 0, on fresh batches a thousand times: the step is too large, or H is not positive
            definite.

    Reference: Arbel and Mairal, Amortized implicit differentiation (AmIGO), ICLR 2022.

    Example:
        >>> from metaopt import Implicit, check
        >>> from metaopt.estimators import GradientDescent
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"gd": Implicit(GradientDescent(iterations=40, step=1.0))})
        >>> row.error < 0.02
        True
    """

    stacks: ClassVar[bool] = True

    iterations: int = 10
    step: float = 0.1
    warm_start: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "iterations >= 1", "step > 0", "warm_start")

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return q after all iterations."""
        warm = self.warm_start and "solution" in state
        q = state["solution"] if warm else tree.zeros_like(v)
        residual, most = v, tree.norm(v)
        for i in range(self.iterations):
            if warm or i:
                residual = tree.add(v, product(q), -1.0)
            if i == 0:
                most = most.maximum(tree.norm(residual))
            q = tree.add(q, residual, self.step)
        size = tree.norm(residual)
        limit = 1e3 if getattr(product, "fresh", False) else 2.0
        if (size > limit * most).any():
            raise ValueError(
                f"GradientDescent(step={self.step}) diverges: its residual has grown "
                f"{float((size / positive(most)).max()):.3g} times in {self.iterations} "
                f"iterations. The step must be below 2 / (largest eigenvalue of the Hessian of the "
                f"inner loss), which must be positive definite; lower solve.step, or use "
                f"ConjugateGradient."
            )
        return q, {"solution": q}, {"solve/residual": size / positive(tree.norm(v))}
