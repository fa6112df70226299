"""Solvers for H q = v, with H = d2g/dtheta2 known through products only.

A solver is a value: `solver(product, v, state, key)` returns q, the state for the next outer step
and metrics. `state` is `{}` at the start. Cost is counted in products with H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges

Product = Callable[[Tree], Tree]
State = dict[str, Any]
Solution = tuple[Tree, State, dict[str, Tensor]]


class Solver(Protocol):
    """Returns q with H q = v, or an approximation that its docstring states."""

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return (q, state, metrics); `product(p)` is H p."""
        ...


class Preconditioner(Protocol):
    """Returns a cheap approximation of (H + damping I)^-1, up to a factor."""

    def __call__(
        self, product: Product, like: Tree, damping: Tensor, state: State, key: int
    ) -> tuple[Product, State]:
        """Return (apply, state)."""
        ...


@dataclass(frozen=True)
class Identity:
    """q = v: the inverse Hessian is taken to be the identity (T1-T2; betty's "darts").

    The direction is biased whenever curvature differs between directions, and the scale carries
    the curvature. No products. References: Luketina et al., ICML 2016 (T1-T2); Liu et al., DARTS,
    ICLR 2019.

    Example:
        >>> from metaopt import Identity, Implicit, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"t1-t2": Implicit(Identity())})
        >>> row.cosine > 0.95, row.error > 0.5
        (True, True)
    """

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return v itself."""
        return v, {}, {}


@dataclass(frozen=True)
class Neumann:
    """q = step * sum_{i < terms} (I - step H)^i v, which tends to H^-1 v.

    With T terms and step = lr it is the derivative through T steps of SGD at the inner solution.

    Args:
        terms: number of terms, >= 1; costs terms - 1 products.
        step: step size, 0 < step < 2 / (largest eigenvalue), or `None` for 1 / (its estimate by
            power iteration: three more products at the first outer step, one at each later one).

    Reference: Lorraine et al., AISTATS 2020.

    Example:
        >>> from metaopt import Implicit, Neumann, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"neumann": Implicit(Neumann(terms=20))})
        >>> row.error < 0.01
        True
    """

    terms: int = 10
    step: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "terms >= 1", "step > 0 or null")

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return the truncated series."""
        if self.step is None:
            start, iterations = (state["direction"], 1) if state else (v, 3)
            # H moves little between outer steps, so one iteration from the last direction does.
            largest, direction = largest_eigenvalue(product, start, iterations)
            if largest == 0:
                return v, {}, {"solve/step": largest}
            step, state = 1.0 / largest, {"direction": direction}
        else:
            step = torch.full_like(tree.norm(v), self.step)
        total = term = v
        for _ in range(self.terms - 1):
            term = tree.add(term, product(term), -step)
            total = tree.add(total, term)
        return tree.scale(total, step), state, {"solve/step": step}


def largest_eigenvalue(product: Product, start: Tree, iterations: int) -> tuple[Tensor, Tree]:
    """Return |largest eigenvalue| of H by power iteration, and its direction."""
    direction = tree.scale(start, 1.0 / _positive(tree.norm(start)))
    size = tree.norm(direction)
    for _ in range(iterations):
        image = product(direction)
        size = tree.norm(image)
        direction = tree.scale(image, 1.0 / _positive(size))
    return size, direction


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

    The residual never exceeds |v|, that of q = 0: an iterate that does is shrunk.

    Metrics: `solve/residual` |v - H q| / |v| (up to delta |d| / |v|), `solve/negative_curvature` 1
    if a direction with p^T (H + delta I) p <= 0 ended the solve.

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
            curvature = (tree.dot(v, image) / _positive(tree.dot(v, v))).abs()
            # Below round-off the quotient is noise, and its inverse would be large: start at 0.
            floor = torch.finfo(curvature.dtype).eps * tree.norm(image) / _positive(tree.norm(v))
            inverse = torch.where(curvature > floor, 1.0 / curvature, 0.0)
            q, image = tree.scale(v, inverse), tree.scale(image, inverse)
        damping = self.damping * curvature
        apply: Product = _unchanged
        sketch = state.get("preconditioner", {})
        if self.preconditioner is not None:
            apply, sketch = self.preconditioner(product, v, damping, sketch, key)
        q, residual, largest, negative = self._iterate(
            product, apply, q, tree.add(v, image, -1.0), damping, tree.norm(v)
        )
        q, residual = _bounded(q, residual, v)
        curvature = torch.where(largest > 0, largest, curvature)
        state = {"curvature": curvature, "solution": q}
        if self.preconditioner is not None:
            state["preconditioner"] = sketch
        error = tree.norm(residual) / _positive(tree.norm(v))
        return q, state, {"solve/residual": error, "solve/negative_curvature": negative}

    def _iterate(
        self, product: Product, apply: Product, q: Tree, r: Tree, damping: Tensor, scale: Tensor,
    ) -> tuple[Tree, Tree, Tensor, Tensor]:  # fmt: skip
        """Return q, residual, largest curvature met and whether a negative one stopped it."""
        z = apply(r)
        p, rz = z, tree.dot(r, z)
        negative = torch.zeros_like(rz)
        largest = torch.zeros_like(rz)
        for _ in range(self.iterations):
            if self.tolerance and tree.norm(r) <= self.tolerance * scale:
                break
            image = tree.add(product(p), p, damping)
            bend, size = tree.dot(p, image), tree.dot(p, p)
            if bend <= 0:  # along p the quadratic has no minimum: keep what is solved so far
                negative += size > 0
                break
            largest = torch.maximum(largest, bend / size - damping)
            alpha = rz / bend
            q, r = tree.add(q, p, alpha), tree.add(r, image, -alpha)
            z = apply(r)
            rz, previous = tree.dot(r, z), rz
            p = tree.add(z, p, rz / previous)
        return q, r, largest, negative


def _unchanged(r: Tree) -> Tree:
    return r


def _bounded(q: Tree, residual: Tree, v: Tree) -> tuple[Tree, Tree]:
    """Return q, shrunk to the least residual along it where it is worse than q = 0.

    With an indefinite H the iterates may run away before a negative curvature is met, and a warm
    start would carry them from one outer step to the next.
    """
    image = tree.add(v, residual, -1.0)
    best = (tree.dot(v, image) / _positive(tree.dot(image, image))).clamp_min(0.0)
    share = torch.where(tree.norm(residual) > tree.norm(v), best, torch.ones_like(best))
    return tree.scale(q, share), tree.add(v, image, -share)


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


@dataclass(frozen=True)
class Exact:
    """q = (H + damping I)^-1 v with the dense Hessian: the oracle for small inner levels.

    Args:
        damping: added to the diagonal, >= 0.
        limit: largest number of parameters n accepted; costs n products and n^3 operations.

    Example:
        >>> from metaopt import Exact, Implicit, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"exact": Implicit(Exact())})
        >>> row.closed_error < 1e-4
        True
    """

    damping: float = 0.0
    limit: int = 2000

    def __post_init__(self) -> None:
        check_ranges(self, "damping >= 0", "limit >= 1")

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return the solution of the dense system.

        Raises:
            ValueError: v has more than `limit` entries, or the system is singular.
        """
        sizes = [t.numel() for t in v.values()]
        n = sum(sizes)
        if n > self.limit:
            raise ValueError(
                f"Exact solves a dense system of at most limit={self.limit} parameters; this inner "
                f"level has {n}. Use ConjugateGradient, or raise the limit."
            )
        flat = _flatten(v)
        rows = torch.eye(n, dtype=flat.dtype, device=flat.device)
        hessian = torch.stack([_flatten(product(_unflatten(row, v, sizes))) for row in rows])
        q, info = torch.linalg.solve_ex(hessian + self.damping * rows, flat)
        if info.item():
            raise ValueError(
                f"Exact: the Hessian of the inner loss is singular (damping={self.damping}): a "
                f"direction in theta changes nothing, as a shift of all logits of a softmax. Set "
                f"damping > 0, add a decay to inner_loss, or use ConjugateGradient."
            )
        return _unflatten(q, v, sizes), {}, {}


def _flatten(values: Tree) -> Tensor:
    return torch.cat([t.reshape(-1) for t in values.values()])


def _unflatten(flat: Tensor, like: Tree, sizes: list[int]) -> Tree:
    parts = flat.split(sizes)
    return {k: part.view_as(t) for (k, t), part in zip(like.items(), parts, strict=True)}
