"""The derivative of a whole inner run by central differences: an oracle without estimators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator
from metaopt.testing.precision import require_float64

RADII = (1e-2, 1e-3, 1e-4, 1e-5)
SMALLEST_SCALE = 1e-3
SETTLED = 1e-9


@dataclass(frozen=True)
class Differences:
    """Slopes of the outer loss after a whole run, D_i = d/dt F(phi + t d_i) at t = 0.

    Args:
        directions: d_i, in the form of phi.
        slopes: D_i.
        errors: how far each slope may be off, by comparing radii.
    """

    directions: list[Tree]
    slopes: list[float]
    errors: list[float]

    @property
    def uncertainty(self) -> float:
        """The slopes' own error, |errors| / |D|.

        About 1e-9 for a smooth run; near 1 where F jumps or has kinks within 1e-5 of phi.
        """
        return _ratio(math.hypot(*self.errors), math.hypot(*self.slopes))

    def distance(self, grad: Tree) -> float:
        """Return sqrt(sum_i (<grad, d_i> - D_i)^2 / sum_i D_i^2), a relative error of `grad`."""
        grad = {k: v.double() for k, v in grad.items()}
        gaps = [
            float(tree.dot(grad, direction)) - slope
            for direction, slope in zip(self.directions, self.slopes, strict=True)
        ]
        return _ratio(math.hypot(*gaps), math.hypot(*self.slopes))


def run_differences(
    loop: InnerLoop, outer: Tree, inner: GradientState, key: int, steps: int, directions: int = 2
) -> Differences:
    """Return the slopes of F(phi, theta_K) along random directions in phi, in float64.

    Each one is a central difference of whole runs, (F(phi + h d) - F(phi - h d)) / 2h, at radii
    h = 1e-2 to 1e-5, extrapolated to h = 0 (Richardson). Runs take steps without a graph and share
    nothing with the estimators, so that what both say is right. An entry of d is normal, with the
    root mean square of its tensor in phi as the standard deviation.

    A run starts at `inner`, held fixed; where `inner` is the start of a problem with
    `warm_start=False`, at the theta_0 of the perturbed phi.

    Differences see all that moves F. Estimators hold constant what a loss detaches and what
    `prepare_batch` decides, so that there they differ on purpose.

        loop = InnerLoop(in_float64(MyProblem()))
        outer = loop.problem.init_outer(generator(0))
        start = loop.start(outer, None, key=0)
        differences = run_differences(loop, outer, start, key=0, steps=5)
        _, feedback = Unroll(5)(loop, outer, start, 0)
        assert differences.distance(feedback.grad) < 1e-6

    Args:
        loop: of a problem in float64; see `metaopt.testing.in_float64`.
        outer, inner, key: as an estimator is called; left as they are.
        steps: number K of inner steps, >= 0.
        directions: how many, >= 1.

    Cost: 4 to 8 runs for each direction.

    Raises:
        ValueError: phi or F is not in float64.

    Reference: Ridders, Advances in Engineering Software 1982 (choice of the radius).
    """
    for name, tensor in outer.items():
        require_float64(loop.problem, f"the outer variable {name!r}", tensor)

    def value(at: Tree) -> float:
        loss = retrained(loop, at, inner, key, steps)[1]
        require_float64(loop.problem, "outer_loss", loss)
        return float(loss)

    return differences_of(value, outer, key, directions)


def retrained(
    loop: InnerLoop, outer: Tree, inner: GradientState, key: int, steps: int
) -> tuple[GradientState, Tensor]:
    """Return where a run under another phi ends, and F there; takes steps without a graph.

    It starts at `inner`, or where a run of that phi starts; see `run_differences`.
    """
    restarts = inner.step == 0 and not loop.problem.warm_start
    start = loop.start(outer, None, key) if restarts else tree.clone(inner)
    end = loop.run(outer, start, key, steps)
    return end, torch.as_tensor(loop.evaluate(outer, end, key).value)


def differences_of(
    value: Callable[[Tree], float], outer: Tree, key: int, directions: int = 2
) -> Differences:
    """Return the slopes of any function of phi as `run_differences` returns those of a run.

    Args:
        value: phi to a number in double precision.
        outer: where.
        key: seed of the directions.
        directions: how many, >= 1.
    """

    def along(direction: Tree, h: float) -> float:
        return value(tree.add(outer, direction, h))

    chosen, slopes, errors = [], [], []
    for i in range(directions):
        draw = generator(fold(key, "direction", i))
        direction = {k: v * _scale(outer[k]) for k, v in tree.random_like(outer, draw).items()}
        slope, error = _extrapolated(partial(along, direction))
        chosen.append(direction)
        slopes.append(slope)
        errors.append(error)
    return Differences(chosen, slopes, errors)


def _scale(tensor: Tensor) -> float:
    """Return the size of a perturbation: that of the tensor itself, 1 for zeros."""
    size = float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
    return max(size, SMALLEST_SCALE) if size else 1.0


def _extrapolated(value: Callable[[float], float]) -> tuple[float, float]:
    """Return the derivative at 0 and an estimate of its error, by Ridders' method.

    A row of the tableau is one radius; entry j of it is free of the error terms up to h^2j. The
    entry that differs least from the two it was made of is the result.
    """
    slope, least = math.nan, math.inf
    previous: list[float] = []
    for h in RADII:
        above, below = value(h), value(-h)
        row = [(above - below) / (2 * h)]
        rounding = torch.finfo(torch.float64).eps * max(abs(above), abs(below)) / h
        for j, earlier in enumerate(previous):
            ratio = (RADII[0] / RADII[1]) ** (2 * j + 2)
            row.append(row[j] + (row[j] - earlier) / (ratio - 1))
            error = max(abs(row[-1] - row[j]), abs(row[-1] - earlier), rounding)
            if error < least:  # false for NaN: a radius that leaves the domain of F
                slope, least = row[-1], error
        if least <= SETTLED * abs(slope):
            break
        previous = row
    return slope, least


def _ratio(size: float, of: float) -> float:
    return size / of if of else (0.0 if size == 0 else math.inf)
