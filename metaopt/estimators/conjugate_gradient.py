"""Conjugate gradients as a solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.solvers import Preconditioner, Product, Solution, State, positive


@dataclass(frozen=True)
class ConjugateGradient:
    """q = q0 + d with (H + delta I) d = v - H q0 by conjugate gradients.

    q0 is the previous outer step's solution, and v / (v^T H v / v^T v) at the start, so the damping
    is proximal: it limits how far one solve moves and leaves no bias once outer steps are small.

    Args:
        iterations: most iterations per solve, >= 1, each one product; one more product goes to the
            residual of q0.
        damping: delta as a fraction of the largest curvature p^T H p / p^T p met in the last
            solve, >= 0.
        tolerance: stop when |residual| <= tolerance * |v|; 0 never tests, which on a GPU saves
            one of two synchronisations per iteration (the other looks for negative curvature).
        warm_start: whether to start from the previous solution.
        preconditioner: `Nystrom(...)`, or `None`.

    An iterate whose residual exceeds |v|, that of q = 0, is shrunk. A direction of negative
    curvature ends the solve with what is solved so far; where that is nothing, which would leave
    the direct term alone, q = v |v| / |H v|: the first iterate with the damping raised to
    |H v| / |v| - v^T H v / v^T v, for one product more. Its residual is at most 2 |v|.

    Metrics: `solve/residual` |v - H q| / |v|, of H without the damping; `solve/damping` delta;
    `solve/negative_curvature` 1 if a direction with p^T (H + delta I) p <= 0 ended the solve.

    Raises:
        ValueError: from a call, when H v = 0 and v is not, so that no q solves the system.

    References: Pedregosa, ICML 2016; Grazzi et al., ICML 2020; Rajeswaran et al., NeurIPS 2019.

    Example:
        >>> from metaopt import ConjugateGradient, Implicit, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"cg": Implicit(ConjugateGradient(iterations=20))})
        >>> row.error < 0.001
        True
    """

    iterations: int = 5
    damping: float = 1e-3
    tolerance: float = 1e-3
    warm_start: bool = True
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "iterations >= 1", "damping >= 0", "tolerance >= 0")

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return the solution after at most `iterations` steps."""
        warm = self.warm_start and "solution" in state
        image = product(state["solution"] if warm else v)
        if warm:
            q, curvature = state["solution"], state["curvature"]
        else:
            curvature = (tree.dot(v, image) / positive(tree.dot(v, v))).abs()
            # Below round-off the quotient is noise, and its inverse would be large: start at 0.
            floor = torch.finfo(curvature.dtype).eps * tree.norm(image) / positive(tree.norm(v))
            inverse = torch.where(curvature > floor, 1.0 / curvature, 0.0)
            q, image = tree.scale(v, inverse), tree.scale(image, inverse)
        damping = self.damping * curvature
        apply: Product = _unchanged
        sketch = state.get("preconditioner", {})
        if self.preconditioner is not None:
            apply, sketch = self.preconditioner(product, v, damping, sketch, key)
        start = q
        q, residual, largest, negative = self._iterate(
            product, apply, q, tree.add(v, image, -1.0), damping, tree.norm(v)
        )
        # The iteration's own residual is that of the damped system.
        residual = tree.add(residual, tree.add(q, start, -1.0), damping)
        q, residual = _bounded(q, residual, v)
        if (none := (tree.norm(q) == 0) & (tree.norm(v) > 0)).any():
            first, rest, raised = _first_iterate(product, v, none)
            q, residual = tree.where(none, first, q), tree.where(none, rest, residual)
            damping = torch.where(none, raised, damping)
        curvature = torch.where(largest > 0, largest, curvature)
        state = {"curvature": curvature, "solution": q}
        if self.preconditioner is not None:
            state["preconditioner"] = sketch
        error = tree.norm(residual) / positive(tree.norm(v))
        return q, state, {
            "solve/residual": error, "solve/damping": damping, "solve/negative_curvature": negative
        }  # fmt: skip

    def _iterate(
        self, product: Product, apply: Product, q: Tree, r: Tree, damping: Tensor, scale: Tensor,
    ) -> tuple[Tree, Tree, Tensor, Tensor]:  # fmt: skip
        """Return q, residual, largest curvature met and whether a negative one stopped it."""
        z = apply(r)
        p, rz = z, tree.dot(r, z)
        negative = torch.zeros_like(rz)
        largest = torch.zeros_like(rz)
        ended = torch.zeros_like(rz, dtype=torch.bool)
        for _ in range(self.iterations):
            if self.tolerance:
                ended = ended | (tree.norm(r) <= self.tolerance * scale)
                if ended.all():
                    break
            image = tree.add(product(p), p, damping)
            bend, size = tree.dot(p, image), tree.dot(p, p)
            # Along such a p the quadratic has no minimum: keep what is solved so far.
            flat = ~ended & (bend <= 0)
            negative += flat & (size > 0)
            ended = ended | flat
            if ended.all():
                break
            largest = torch.where(ended, largest, torch.maximum(largest, bend / size - damping))
            alpha = torch.where(ended, 0.0, rz / bend)
            q, r = tree.add(q, p, alpha), tree.add(r, image, -alpha)
            z = apply(r)
            rz, previous = tree.dot(r, z), rz
            p = tree.add(z, p, torch.where(ended, 0.0, rz / previous))
        return q, r, largest, negative

    @property
    def stacks(self) -> bool:
        """Whether each replicate has the solution that it would have alone."""
        return self.preconditioner is None or getattr(self.preconditioner, "stacks", False)


def _unchanged(r: Tree) -> Tree:
    return r


def _first_iterate(product: Product, v: Tree, needed: Tensor) -> tuple[Tree, Tree, Tensor]:
    """Return q, residual and damping where the curvature along v is raised to |H v| / |v|.

    Args:
        product, v: the system.
        needed: of which replicates they are needed.

    Raises:
        ValueError: H v is 0.
    """
    image = product(v)
    raised = tree.norm(image) / tree.norm(v)
    if (needed & (raised == 0)).any():
        raise ValueError(
            "ConjugateGradient: the inner loss has no curvature along dF/dtheta, so that its "
            "stationary point says nothing of the hypergradient. Add a decay to inner_loss or to "
            "inner_optimizer, or use estimator=unroll."
        )
    q = tree.scale(v, 1.0 / raised)
    damping = raised - tree.dot(v, image) / tree.dot(v, v)
    return q, tree.add(v, image, -1.0 / raised), damping


def _bounded(q: Tree, residual: Tree, v: Tree) -> tuple[Tree, Tree]:
    """Return q, shrunk to the least residual along it where it is worse than q = 0.

    With an indefinite H the iterates may run away before a negative curvature is met, and a warm
    start would carry them from one outer step to the next.
    """
    image = tree.add(v, residual, -1.0)
    best = (tree.dot(v, image) / positive(tree.dot(image, image))).clamp_min(0.0)
    share = torch.where(tree.norm(residual) > tree.norm(v), best, torch.ones_like(best))
    return tree.scale(q, share), tree.add(v, image, -share)
