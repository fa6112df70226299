"""A quadratic in both levels, with its solution and its hypergradient known: the second oracle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.engine.ranges import check_choices, check_ranges


class Quadratic(GradientProblem):
    """g = theta^T A theta / 2 - theta^T (B phi + c), F = |theta - t|^2 / 2 + rho |phi|^2 / 2.

    Inner solution: theta* = A^{-1} (B phi + c).
    Hypergradient at theta*: dF/dphi = B^T A^{-1} (theta* - t) + rho phi.
    Outer solution: (B^T A^{-2} B + rho I) phi* = B^T A^{-1} (t - A^{-1} c).
    A has eigenvalues from 1 / condition to 1, evenly spaced in the logarithm, in random
    directions, so that SGD is stable up to a learning rate of 2.

    Args:
        features: size of theta, >= 2.
        outers: size of phi, >= 1.
        condition: condition number of A, >= 1.
        rho: weight of the direct term, >= 0.
        inner_optimizer: how theta is stepped.
        seed: seed of A, B, c and t.
        dtype: "float64" or "float32".
    """

    def __init__(
        self,
        features: int = 20,
        outers: int = 5,
        condition: float = 10.0,
        rho: float = 0.1,
        inner_optimizer: InnerOptimizer | None = None,
        seed: int = 0,
        dtype: str = "float64",
    ) -> None:
        self.features, self.outers, self.condition, self.rho = features, outers, condition, rho
        check_ranges(self, "features >= 2", "outers >= 1", "condition >= 1", "rho >= 0")
        self.dtype = dtype
        check_choices(self, dtype=("float32", "float64"))
        self.inner_optimizer, self._dtype = inner_optimizer or SGD(lr=1.0), getattr(torch, dtype)
        draw = generator(fold(seed, "quadratic"))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        directions = torch.linalg.qr(normal(features, features)).Q
        eigenvalues = torch.logspace(0, -1, features, base=condition, dtype=torch.float64)
        curvature = directions * eigenvalues @ directions.T
        self.curvature = ((curvature + curvature.T) / 2).to(self._dtype)
        self.coupling = (normal(features, outers) / features**0.5).to(self._dtype)
        self.offset, self.target = (
            normal(features).to(self._dtype),
            normal(features).to(self._dtype),
        )

    def init_outer(self, generator: Generator) -> Tree:
        """Return zeros, (outers,)."""
        return {"phi": torch.zeros(self.coupling.shape[1], dtype=self._dtype)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return zeros, (features,)."""
        return {"theta": torch.zeros_like(self.offset)}

    def inner_batch(self, draw: Draw) -> None:
        """Return nothing: both losses are deterministic."""

    def outer_batch(self, draw: Draw) -> None:
        """Return nothing: both losses are deterministic."""

    def inner_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        """Return g(phi, theta)."""
        theta = inner["theta"]
        return torch.sub(theta @ (self.curvature @ theta) / 2, theta @ self._force(outer))

    def outer_loss(self, outer: Tree, inner: Tree, batch: None) -> Tensor:
        """Return F(phi, theta)."""
        gap = inner["theta"] - self.target
        return gap @ gap / 2 + self.rho * (outer["phi"] @ outer["phi"]) / 2

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float]:
        """Return the distances of phi and theta from the solution of both levels."""
        best = self.optimum()
        return {
            "outer_distance": float(torch.linalg.vector_norm(outer["phi"] - best["phi"])),
            "inner_distance": float(
                torch.linalg.vector_norm(inner.params["theta"] - self.solve(best))
            ),
        }

    def solve(self, outer: Tree) -> Tensor:
        """Return theta*(phi), (features,)."""
        result: Tensor = torch.linalg.solve(self.curvature, self._force(outer))
        return result

    def hypergradient(self, outer: Tree) -> Tree:
        """Return dF(phi, theta*(phi))/dphi in closed form."""
        q = torch.linalg.solve(self.curvature, self.solve(outer) - self.target)
        return {"phi": self.coupling.T @ q + self.rho * outer["phi"]}

    def optimum(self) -> Tree:
        """Return phi*, which minimises F(phi, theta*(phi)); unique when rho > 0."""
        slope = torch.linalg.solve(self.curvature, self.coupling)
        rest = self.target - torch.linalg.solve(self.curvature, self.offset)
        outers = slope.shape[1]
        matrix = slope.T @ slope + self.rho * torch.eye(outers, dtype=self._dtype)
        return {"phi": torch.linalg.solve(matrix, slope.T @ rest)}

    def _force(self, outer: Tree) -> Tensor:
        return torch.add(self.coupling @ outer["phi"], self.offset)
