"""A maximum that no fixed hyperparameters reach: the toy of population-based training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_ranges

PEAK = 1.2


class SurrogateQuadratic(GradientProblem):
    """g = -Qhat = h_0 theta_0^2 + h_1 theta_1^2 - 1.2, F = -Q = theta_0^2 + theta_1^2 - 1.2.

    Symbols: h = `outer["h"]`, (2,), weights of the surrogate; theta, (2,), starts at (0.9, 0.9). A
    step of SGD without momentum multiplies theta_i by 1 - 2 lr h_i, so that all runs are known in
    closed form. A member with h = (1, 0) never moves theta_1, and its Q stays below 0.39: what two
    such members can reach they reach by copying each other and changing what they copied.

    Args:
        h: where h starts.
        start: where both entries of theta start.
        inner_optimizer: how theta is stepped; `None` for SGD(lr=0.01).

    Reference: Jaderberg et al., Population Based Training of Neural Networks, arXiv 1711.09846,
    2017, figure 2.

    Example:
        >>> from metaopt import Grid, Uniform, run
        >>> from metaopt.estimators import PopulationScore
        >>> from metaopt.optimizers import PopulationBased
        >>> pair = Grid({"h": [[1.0, 0.0], [0.0, 1.0]]}, relative=False)
        >>> settings = {"members": 2, "space": Uniform(0.0, 1.0), "start": pair, "log": False}
        >>> copying = PopulationBased(fraction=0.5, resample=1.0, **settings)
        >>> result = run(SurrogateQuadratic(), PopulationScore(4), copying, 50, progress=False)
        >>> fixed = PopulationBased(exploit="none", **settings)
        >>> grid = run(SurrogateQuadratic(), PopulationScore(4), fixed, 50, progress=False)
        >>> round(result.metrics["eval/Q"], 2), round(grid.metrics["eval/Q"], 2)
        (1.2, 0.39)
    """

    def __init__(
        self,
        h: tuple[float, float] = (1.0, 0.0),
        start: float = 0.9,
        inner_optimizer: InnerOptimizer | None = None,
    ) -> None:
        self.h, self.start = tuple(h), start
        if len(self.h) != 2:
            raise ValueError(f"SurrogateQuadratic needs two weights h; got {h!r}.")
        check_ranges(self, "start")
        self.inner_optimizer = inner_optimizer or SGD(lr=0.01)

    def init_outer(self, generator: Generator) -> Tree:
        """Return h, (2,)."""
        return {"h": torch.tensor(self.h, dtype=torch.float64)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return theta_0, (2,)."""
        return {"theta": torch.full((2,), self.start, dtype=torch.float64)}

    def inner_batch(self, draw: Draw) -> None:
        """Return nothing: both losses are deterministic."""

    def outer_batch(self, draw: Draw) -> None:
        """Return nothing: both losses are deterministic."""

    def inner_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        """Return -Qhat(theta | h)."""
        return (outer["h"] * inner["theta"] ** 2).sum() - PEAK

    def outer_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        """Return -Q(theta)."""
        return (inner["theta"] ** 2).sum() - PEAK

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return Q, of which 1.2 is the largest."""
        return {"Q": PEAK - (inner.params["theta"] ** 2).sum()}
