"""The truncated Neumann series as a solver."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.solvers import Product, Solution, State, positive

METRICS = ("solve/step", "solve/residual", "solve/negative_curvature")


@dataclass(frozen=True)
class Neumann:
    """q = step * sum_{i < terms} (I - step H)^i v, which tends to H^-1 v.

    With T terms and step = lr it is the derivative through T steps of SGD at the inner solution.

    The residual after T terms is (I - step H)^T v, which must not grow from term to term. Where it
    does, ten products from there tell why: an own step that was too large is made smaller and
    the series starts again; a given one is refused. Along a negative curvature the series does not
    tend to H^-1 v: with an own step it ends with the terms before, with a given one it has all its
    terms, which are still the derivative through T steps. On fresh batches
    (`Implicit(fresh_batches=True)`), where single terms may grow, it has all of them, too.

    Args:
        terms: number of terms, >= 1; costs as many products.
        step: step size, 0 < step < 2 / (largest eigenvalue), or `None` for 1 / (its estimate by
            power iteration: three more products at the first outer step, one at each later one,
            and three again where H has come to be 0 along what that iterates).

    Metrics: `solve/residual` |v - H q| / |v|, `solve/step`, `solve/negative_curvature` 1 if one
    ended the series.

    Raises:
        ValueError: from a call, when `step` is above 2 / (largest eigenvalue) so that the series
            diverges (on fresh batches: its residual has grown a thousand times); with an own step,
            when H v = 0 and v is not, so that no q solves the system.

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
        if self.step is not None:
            step = torch.full_like(size, self.step)
            if getattr(product, "fresh", False):
                return self._on_fresh_batches(product, v, step, state)
        else:
            largest, direction = _largest(product, v, state)
            if ((flat := largest == 0) & (size > 0)).any():
                raise ValueError(
                    "Neumann: the inner loss has no curvature along dF/dtheta, so that its "
                    "stationary point says nothing of the hypergradient. Add a decay to inner_loss "
                    "or to inner_optimizer, set a step, or use estimator=unroll."
                )
            if flat.all():
                zero = torch.zeros_like(size)
                return v, {}, dict.fromkeys(METRICS, zero)
            # Where v is 0, and H unknown, q is 0 by any step.
            step = torch.where(flat, 0.0, 1.0 / largest)
            state = {"direction": direction}
        total, residual, step, negative, state = self._converging(product, v, step, state)
        values = step, tree.norm(residual) / positive(size), negative
        return tree.scale(total, step), state, dict(zip(METRICS, values, strict=True))

    def _converging(
        self, product: Product, v: Tree, step: Tensor, state: State
    ) -> tuple[Tree, Tree, Tensor, Tensor, State]:
        """Return the series, its residual, its step, whether a negative curvature ended it, state.

        An own step is made smaller until the residual does not grow; see the class.
        """
        total, residual, growing, grows = self._series(product, v, step)
        negative = torch.zeros_like(step)
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
        return total, residual, step, negative, state

    def _on_fresh_batches(self, product: Product, v: Tree, step: Tensor, state: State) -> Solution:
        """Return the series of products with another matrix each.

        One batch may enlarge what the mean of all makes smaller: growth is no divergence yet.
        """
        size = tree.norm(v)
        total, residual, *_ = self._series(product, v, step, bounded=False)
        grown = tree.norm(residual) / positive(size)
        if (grown > 1e3).any():
            raise ValueError(
                f"Neumann(step={self.step}) diverges: its residual has grown "
                f"{float(grown.max()):.3g} times in {self.terms} terms. The step must be below "
                f"2 / (largest eigenvalue of the Hessian of the inner loss), which must be "
                f"positive definite; lower solve.step, or take larger batches."
            )
        values = step, grown, torch.zeros_like(size)
        return tree.scale(total, step), state, dict(zip(METRICS, values, strict=True))

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


def _largest(product: Product, v: Tree, state: State) -> tuple[Tensor, Tree]:
    """Return an estimate of |largest eigenvalue| of H, 0 where H v is 0, and its direction."""
    if not state:
        largest, _, direction = power_iteration(product, v, 3)
        return largest, direction
    # H moves little between outer steps, so one iteration from the last direction does; but a unit
    # of a network may have died, and with it all curvature along that direction.
    largest, _, direction = power_iteration(product, state["direction"], 1)
    if (lost := largest == 0).any():
        first, _, other = power_iteration(product, v, 3)
        largest = torch.where(lost, first, largest)
        direction = tree.where(lost, other, direction)
    return largest, direction


def power_iteration(product: Product, start: Tree, iterations: int) -> tuple[Tensor, Tensor, Tree]:
    """Return |largest eigenvalue| of H, the Rayleigh quotient of its direction, the direction."""
    direction = tree.scale(start, 1.0 / positive(tree.norm(start)))
    size = quotient = tree.norm(direction)
    for _ in range(iterations):
        image = product(direction)
        size, quotient = tree.norm(image), tree.dot(direction, image)
        direction = tree.scale(image, 1.0 / positive(size))
    return size, quotient, direction
