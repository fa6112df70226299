"""Ridge regression with one penalty per feature: hyperparameters by gradient, in closed form.

The smallest problem with every part of the real ones, and the oracle of the tests: its inner
solution and its hypergradient are known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.engine.ranges import check_choices, check_ranges

Data = tuple[Tensor, Tensor]


class Ridge(GradientProblem):
    """Choose log-penalties phi so that the ridge solution theta predicts held-out examples.

    g(phi, theta) = |X theta - y|^2 / 2n + sum_j p_j theta_j^2 / 2 on the training examples,
    F(phi, theta) = |X' theta - y'|^2 / 2n' on the validation examples, p_j = exp(phi_j).

    Inner solution: theta* = (X^T X / n + diag(p))^{-1} X^T y / n.
    Hypergradient at theta*: dF/dphi_j = -p_j theta*_j q_j with (d2g/dtheta2) q = dF/dtheta.
    The penalties of features without signal grow without end, and gradient descent on g diverges
    where one is above 2 / lr. With `max_penalty`, p_j = min(exp(phi_j), max_penalty), and dF/dphi_j
    is 0 beyond it.

    Args:
        features: number of features; the first half carries signal, the rest is noise.
        rows: training examples n; as many again for validation and for test.
        noise: standard deviation of the targets' noise.
        spread: ratio of the largest to the smallest feature scale.
        penalty: initial penalty p_j.
        inner_optimizer: how theta is stepped.
        seed: seed of the data.
        dtype: "float64" or "float32".
        max_penalty: largest penalty, > `penalty`; `None` for no limit.
    """

    def __init__(
        self,
        features: int = 20,
        rows: int = 60,
        noise: float = 0.5,
        spread: float = 4.0,
        penalty: float = 0.0085,
        inner_optimizer: InnerOptimizer | None = None,
        seed: int = 0,
        dtype: str = "float64",
        max_penalty: float | None = None,
    ) -> None:
        self.features, self.rows, self.penalty = features, rows, penalty
        self.noise, self.spread, self.seed = noise, spread, seed
        self.max_penalty = max_penalty
        check_ranges(
            self, "features >= 1", "rows >= 1", "noise >= 0", "spread > 0", "penalty > 0", "seed"
        )
        self._most = math.inf
        if max_penalty is not None:
            check_ranges(self, "penalty < max_penalty")
            self._most = math.log(max_penalty)
        self.dtype = dtype
        check_choices(self, dtype=("float32", "float64"))
        self.inner_optimizer, self._dtype = inner_optimizer or SGD(lr=0.1), getattr(torch, dtype)
        draw = generator(fold(seed, "ridge"))
        scales = torch.logspace(0, -1, features, base=spread, dtype=torch.float64)
        truth = torch.randn(features, generator=draw, dtype=torch.float64)
        truth[features // 2 :] = 0

        def examples(n: int) -> Data:
            x = torch.randn(n, features, generator=draw, dtype=torch.float64) * scales
            y = x @ truth + noise * torch.randn(n, generator=draw, dtype=torch.float64)
            return x.to(self._dtype), y.to(self._dtype)

        self.train, self.validation, self.test = examples(rows), examples(rows), examples(rows)

    def init_outer(self, generator: Generator) -> Tree:
        """Return log-penalties, (features,)."""
        start = torch.full((self.features,), self.penalty, dtype=self._dtype)
        return {"log_penalty": start.log()}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return zero weights, (features,)."""
        return {"weight": torch.zeros(self.features, dtype=self._dtype)}

    def inner_batch(self, draw: Draw) -> Data:
        """Return all training examples."""
        return self.train

    def outer_batch(self, draw: Draw) -> Data:
        """Return all validation examples."""
        return self.validation

    def inner_loss(self, outer: Tree, inner: Tree, batch: Data) -> Tensor:
        """Return half the mean squared error plus the penalty."""
        penalty = (self._penalties(outer) * inner["weight"] ** 2).sum() / 2
        return _half_mse(inner, batch) + penalty

    def outer_loss(self, outer: Tree, inner: Tree, batch: Data) -> Tensor:
        """Return half the mean squared error."""
        return _half_mse(inner, batch)

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float]:
        """Return the test error of theta, and that of the exact ridge solution for phi."""
        exact = {"weight": self.solve(outer)}
        return {
            "test_loss": float(_half_mse(inner.params, self.test)),
            "test_loss_solved": float(_half_mse(exact, self.test)),
        }

    def hessian(self, outer: Tree) -> Tensor:
        """Return d2g/dtheta2, (features, features)."""
        x, _ = self.train
        return x.T @ x / len(x) + torch.diag(self._penalties(outer))

    def solve(self, outer: Tree) -> Tensor:
        """Return theta*(phi), (features,)."""
        x, y = self.train
        result: Tensor = torch.linalg.solve(self.hessian(outer), x.T @ y / len(x))
        return result

    def hypergradient(self, outer: Tree) -> Tree:
        """Return dF(phi, theta*(phi))/dphi in closed form."""
        x, y = self.validation
        theta = self.solve(outer)
        v = x.T @ (x @ theta - y) / len(x)
        q = torch.linalg.solve(self.hessian(outer), v)
        slope = self._penalties(outer) * (outer["log_penalty"] <= self._most)
        return {"log_penalty": -slope * theta * q}

    def _penalties(self, outer: Tree) -> Tensor:
        # Before exp, whose derivative overflows first.
        return outer["log_penalty"].clamp(max=self._most).exp()


def _half_mse(inner: Tree, data: Data) -> Tensor:
    x, y = data
    return ((x @ inner["weight"] - y) ** 2).mean() / 2
