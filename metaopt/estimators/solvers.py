"""Solvers for H q = v, with H = d2g/dtheta2 known through products only.

A solver is a value: `solver(product, v, state, key)` returns q, the state for the next outer step
and metrics. `state` is `{}` at the start. Cost is counted in products with H.

With replicates (`metaopt.engine.tree.replicated`) each has a system of its own, and one product
serves all of them: where a replicate is done, its solution stays while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges

Product = Callable[[Tree], Tree]
State = dict[str, Any]
Solution = tuple[Tree, State, dict[str, Tensor]]


class Solver(Protocol):
    """Returns q with H q = v, or an approximation that its docstring states.

    One that solves the system of each replicate as it would alone may say so by `stacks = True`.
    """

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

    stacks: ClassVar[bool] = True

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return v itself."""
        return v, {}, {}


@dataclass(frozen=True)
class Neumann:
    """q = step * sum_{i < terms} (I - step H)^i v, which tends to H^-1 v.

    With T terms and step = lr it is the derivative through T steps of SGD at the inner solution.

    The residual after T terms is (I - step H)^T v, which must not grow from term to term. Where it
    does, ten products from there tell why: an own step that was too large is made smaller and
    the series starts again; a given one is refused. Along a negative curvature the series does not
    tend to H^-1 v: with an own step it ends with the terms before, with a given one it has all its
    terms, which are still the derivative through T steps.

    Args:
        terms: number of terms, >= 1; costs as many products.
        step: step size, 0 < step < 2 / (largest eigenvalue), or `None` for 1 / (its estimate by
            power iteration: three more products at the first outer step, one at each later one).

    Metrics: `solve/residual` |v - H q| / |v|, `solve/step`, `solve/negative_curvature` 1 if one
    ended the series.

    Raises:
        ValueError: from a call, when `step` is above 2 / (largest eigenvalue) so that the series
            diverges, or H v is 0 in some replicates and not in others.

    Reference: Lorraine et al., AISTATS 2020.

    Example:
        >>> from metaopt import Implicit, Neumann, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"neumann": Implicit(Neumann(terms=20))})
        >>> row.error < 0.01
        True
    """

    stacks: ClassVar[bool] = True

    terms: int = 10
    step: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "terms >= 1", "step > 0 or null")

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return the truncated series."""
        size = tree.norm(v)
        if self.step is None:
            start, iterations = (state["direction"], 1) if state else (v, 3)
            # H moves little between outer steps, so one iteration from the last direction does.
            largest, _, direction = power_iteration(product, start, iterations)
            if (flat := largest == 0).all():
                return v, {}, {"solve/step": largest, "solve/residual": size / _positive(size)}
            if flat.any():
                raise ValueError(
                    "Neumann: the Hessian of the inner loss times dF/dtheta is 0 for some of the "
                    "seeds, and there is no step for them. Set a step, or train the seeds one "
                    "after the other."
                )
            step, state = 1.0 / largest, {"direction": direction}
        else:
            step = torch.full_like(size, self.step)
        total, residual, growing, grows = self._series(product, v, step)
        negative = torch.zeros_like(size)
        while grows.any():
            # What I - step H enlarges most: the growth may come from either end of the spectrum.
            enlarge = partial(_residual, product, step)
            _, factor, direction = power_iteration(enlarge, growing, 10)
            eigenvalue = (1 - factor) / step
            bends = grows & ~(eigenvalue > 0)
            negative += bends
            grows = grows & ~bends
            if self.step is not None:
                if grows.any():
                    raise ValueError(
                        f"Neumann(step={self.step}) diverges: the Hessian of the inner loss has an "
                        f"eigenvalue of about {float(eigenvalue[grows].max()):.3g}, and the step "
                        f"must be below 2 over the largest. Set a smaller step, or null to have "
                        f"it estimated."
                    )
                whole, rest, *_ = self._series(product, v, step, bounded=False)
                total, residual = tree.where(bends, whole, total), tree.where(bends, rest, residual)
                break
            if not grows.any():
                break
            # Halved at least, so that it ends however slowly the power iteration converges.
            smaller = torch.minimum(step / 2, 1.0 / eigenvalue)
            step = torch.where(grows, smaller, step)
            state = {"direction": tree.where(grows, direction, state["direction"])}
            again, rest, growing, still = self._series(product, v, step)
            total, residual = tree.where(grows, again, total), tree.where(grows, rest, residual)
            grows = grows & still
        metrics = {
            "solve/step": step,
            "solve/residual": tree.norm(residual) / _positive(size),
            "solve/negative_curvature": negative,
        }
        return tree.scale(total, step), state, metrics

    def _series(
        self, product: Product, v: Tree, step: Tensor, bounded: bool = True
    ) -> tuple[Tree, Tree, Tree, Tensor]:
        """Return sum_i (I - step H)^i v, its residual, a direction in which that grows, if it does.

        A bounded series ends where it grows.
        """
        total, residual, size = tree.zeros_like(v), v, tree.norm(v)
        growing, grows = v, torch.zeros_like(size, dtype=torch.bool)
        # A residual that has converged changes by round-off.
        eps = torch.finfo(size.dtype).eps
        floor = size * eps**0.5
        for _ in range(self.terms):
            after = _residual(product, step, residual)
            new = tree.norm(after)
            sum_, ended = tree.add(total, residual), grows
            if bounded:
                now = ~grows & (new > torch.maximum(size, floor) * (1 + eps**0.5))
                growing, ended = tree.where(now, after, growing), grows | now
                if ended.all():
                    return total, residual, growing, ended
            if ended.ndim:  # of replicates, those that have ended stay where they are
                sum_ = tree.where(ended, total, sum_)
                after, new = tree.where(ended, residual, after), torch.where(ended, size, new)
            total, residual, size, grows = sum_, after, new, ended
        return total, residual, growing, grows


def _residual(product: Product, step: Tensor, residual: Tree) -> Tree:
    """Return (I - step H) residual."""
    return tree.add(residual, product(residual), -step)


def power_iteration(product: Product, start: Tree, iterations: int) -> tuple[Tensor, Tensor, Tree]:
    """Return |largest eigenvalue| of H, the Rayleigh quotient of its direction, the direction."""
    direction = tree.scale(start, 1.0 / _positive(tree.norm(start)))
    size = quotient = tree.norm(direction)
    for _ in range(iterations):
        image = product(direction)
        size, quotient = tree.norm(image), tree.dot(direction, image)
        direction = tree.scale(image, 1.0 / _positive(size))
    return size, quotient, direction


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
        error = tree.norm(residual) / _positive(tree.norm(v))
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
    best = (tree.dot(v, image) / _positive(tree.dot(image, image))).clamp_min(0.0)
    share = torch.where(tree.norm(residual) > tree.norm(v), best, torch.ones_like(best))
    return tree.scale(q, share), tree.add(v, image, -share)


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


@dataclass(frozen=True)
class Exact:
    """q = (H + damping I)^-1 v with the dense Hessian: the oracle for small inner levels.

    Where a row of H is 0 and so is the entry of v, as for a parameter that no loss reads, q is 0.

    Args:
        damping: added to the diagonal, >= 0.
        limit: largest number of parameters n accepted; costs n products and n^3 operations.

    Metrics: `solve/residual` |v - H q| / |v|, of H without the damping.

    Example:
        >>> from metaopt import Exact, Implicit, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"exact": Implicit(Exact())})
        >>> row.closed_error < 1e-4
        True
    """

    stacks: ClassVar[bool] = True

    damping: float = 0.0
    limit: int = 2000

    def __post_init__(self) -> None:
        check_ranges(self, "damping >= 0", "limit >= 1")

    def __call__(self, product: Product, v: Tree, state: State, key: int) -> Solution:
        """Return the solution of the dense system.

        Raises:
            ValueError: v has more than `limit` entries, or the system is singular to working
                precision.
        """
        flat = _flatten(v)
        n = flat.shape[-1]
        if n > self.limit:
            raise ValueError(
                f"Exact solves a dense system of at most limit={self.limit} parameters; this inner "
                f"level has {n}. Use ConjugateGradient, or raise the limit."
            )
        rows = torch.eye(n, dtype=flat.dtype, device=flat.device)
        images = [_flatten(product(_unflatten(row.expand_as(flat), v))) for row in rows]
        hessian = torch.stack(images, -2)
        # What stands alone with 0 = 0 is solved by 0; the rest may still be singular.
        idle = (hessian == 0).all(-1) & (hessian == 0).all(-2) & (flat == 0)
        system = hessian + torch.diag_embed(self.damping + idle.to(flat))
        q, info = torch.linalg.solve_ex(system, flat.unsqueeze(-1))
        # Round-off makes a pivot of 0 a small number, and the solution a large one.
        inverse, _ = torch.linalg.inv_ex(system)
        condition = torch.linalg.matrix_norm(system, 1) * torch.linalg.matrix_norm(inverse, 1)
        if info.any() or (condition > 1 / torch.finfo(flat.dtype).eps).any():
            raise ValueError(
                f"Exact: the Hessian of the inner loss is singular (damping={self.damping}): a "
                f"direction in theta changes nothing, as a shift of all logits of a softmax. Set "
                f"damping > 0, add a decay to inner_loss, or use ConjugateGradient."
            )
        error = torch.linalg.vector_norm(flat - (hessian @ q).squeeze(-1), dim=-1)
        size = _positive(torch.linalg.vector_norm(flat, dim=-1))
        return _unflatten(q.squeeze(-1), v), {}, {"solve/residual": error / size}


def _flatten(values: Tree) -> Tensor:
    """Return all entries, (n,) or (R, n)."""
    rows = [t.reshape((*t.shape[: t.ndim - len(tree.shape(t))], -1)) for t in values.values()]
    return torch.cat(rows, -1)


def _unflatten(flat: Tensor, like: Tree) -> Tree:
    parts = flat.split([tree.shape(t).numel() for t in like.values()], -1)
    return {k: part.reshape(t.shape) for (k, t), part in zip(like.items(), parts, strict=True)}
