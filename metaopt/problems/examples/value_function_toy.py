"""A toy for penalty methods: an inner loss that is not convex, with a known value function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw

WIDTH = 3.0
"""x starts in (0, WIDTH)."""
GRID = 30_001


class ValueFunctionToy(GradientProblem):
    """g = (x + y)^2 + x sin^2(x + y).

    F = cos(4 y + 2) / (1 + e^(2 - 4 x)) + log((4 x - 2)^2 + 1) / 2.

    phi = x, theta = y. g is not convex in y for x > 1, and has no stationary point in y but
    y*(x) = -x for x in [0, 3], where its second derivative is 2 + 2 x. The value function
    h(x) = F(x, -x) has three local minima there, at 0.38, 1.22 and 2.83. Starts at x uniform in
    (0, 3) and y uniform in (-4, 4), of the run's seed. x is not projected on [0, 3]: h
    falls from both ends inwards, so that small steps stay inside. Everything is in float64.

    Args:
        inner_optimizer: how y is stepped.

    Metrics: `x`; `excess` h(x) - min h; `slope` |dh/dx|, which is 0 at each local minimum, and
    `inner_distance` |x + y|.

    A toy of the kind used in Shen and Chen, On penalty-based bilevel gradient descent method, ICML
    2023; the formula is the one above, which has not been compared with theirs.

    Example:
        >>> from metaopt import Descent, Implicit, run
        >>> problem = ValueFunctionToy()
        >>> result = run(problem, Implicit(inner_steps=5), Descent(lr=0.02), 200, progress=False)
        >>> result.metrics["eval/slope"] < 1e-3
        True
    """

    def __init__(self, inner_optimizer: InnerOptimizer | None = None) -> None:
        self.inner_optimizer = inner_optimizer or SGD(lr=0.1)

    def init_outer(self, generator: Generator) -> Tree:
        """Return x, (1,), uniform in (0, 3)."""
        return {"x": WIDTH * torch.rand(1, generator=generator, dtype=torch.float64)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return y, (1,), uniform in (-4, 4)."""
        return {"y": 8 * torch.rand(1, generator=generator, dtype=torch.float64) - 4}

    def inner_batch(self, draw: Draw) -> None:
        """Return nothing: both losses are deterministic."""

    def outer_batch(self, draw: Draw) -> None:
        """Return nothing: both losses are deterministic."""

    def inner_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        """Return g(x, y)."""
        x = outer["x"]
        u = x + inner["y"]
        return (u.square() + x * u.sin().square()).sum()

    def outer_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        """Return F(x, y)."""
        return _outer(outer["x"], inner["y"]).sum()

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return x, h above its minimum, the slope of h, and the distance of y from -x."""
        x = outer["x"]
        grid = torch.linspace(0, WIDTH, GRID, dtype=torch.float64)
        return {
            "x": x[0],
            "excess": (_outer(x, -x) - _outer(grid, -grid).min())[0],
            "slope": _slope(x).abs()[0],
            "inner_distance": (x + inner.params["y"]).abs()[0],
        }

    def hypergradient(self, outer: Tree) -> Tree:
        """Return dh/dx in closed form."""
        return {"x": _slope(outer["x"])}


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return (4 * y + 2).cos() * (4 * x - 2).sigmoid() + ((4 * x - 2).square() + 1).log() / 2


def _slope(x: Tensor) -> Tensor:
    """Return the derivative of h(x) = F(x, -x)."""
    gate, angle, shift = (4 * x - 2).sigmoid(), 2 - 4 * x, 4 * x - 2
    wave = 4 * angle.sin() * gate + 4 * angle.cos() * gate * (1 - gate)
    return wave + 4 * shift / (shift.square() + 1)
