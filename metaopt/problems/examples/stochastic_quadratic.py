"""benchmark_bilevel's quadratic: a mean over rank-one samples, whose value function is known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine.finite import Finite
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_ranges

TRIES = 20
"""How often data are drawn until the value function is convex."""


class Samples(NamedTuple):
    """Quadratics of rank one: (x z)^2 / 2 + (u w)^2 / 2 + (left w) (right z) + a z + b w.

    Args:
        x, right, a: (n, inner_dim).
        u, left, b: (n, outer_dim).
    """

    x: Tensor
    u: Tensor
    left: Tensor
    right: Tensor
    a: Tensor
    b: Tensor

    def mean(self, w: Tensor, z: Tensor) -> Tensor:
        """Return the mean of the quadratics at (w, z)."""
        squares = ((self.x @ z).square() + (self.u @ w).square()) / 2
        return (squares + (self.left @ w) * (self.right @ z) + self.a @ z + self.b @ w).mean()


class Means(NamedTuple):
    """The mean quadratic: z H z / 2 + w U w / 2 + w C z + a z + b w."""

    H: Tensor
    U: Tensor
    C: Tensor
    a: Tensor
    b: Tensor


class StochasticQuadratic(Finite):
    """g and F are means of quadratics in theta = z and phi = w, each sample of rank one.

    z*(w) = -H^-1 (C^T w + a) with the means H, C, a of g. The value function h(w) = F(w, z*(w)) has
    the gradient U' w + C' z* + b' - C H^-1 (H' z* + C'^T w + a'), where a prime marks the means of
    F. x and u have second moments with eigenvalues from mu to 1, evenly spaced in the logarithm
    (one of F's and one of g's in w is 0); left and right are correlated with singular values from
    mu to cross; a and b are normal. Starts at z = 0 and w = -2. Everything is in float64.

    Args:
        inner_samples, outer_samples: number of samples of g and of F; multiples of `batch`.
        inner_dim, outer_dim: size of z and of w, >= 2.
        batch: samples in a batch, of both losses.
        mu: smallest eigenvalue, in (0, 1].
        cross: largest singular value between w and z, > 0.
        inner_optimizer: how z is stepped.
        replacement: whether batches are drawn with replacement, or go through epochs.
        data_seed: seed of the samples.
        seed: seed of the epochs.

    Metrics: `squared_gradient` |grad h(w)|^2, which the benchmark's figures show, and its decimal
    logarithm, at least -300; `excess` h(w) - min h; `inner_distance` |z - z*(w)|.

    Reference: Dagréou et al., NeurIPS 2022, and benchopt/benchmark_bilevel on GitHub, whose
    simulated data set this is (with other random numbers).

    Example:
        >>> from metaopt import Descent, run
        >>> from metaopt.estimators import Saba
        >>> problem = StochasticQuadratic(128, 48, 8, 3, batch=8, mu=0.5)
        >>> result = run(problem, Saba(), Descent("sgd", lr=0.1), 300, progress=False)
        >>> result.metrics["eval/squared_gradient"] < 1e-3
        True
    """

    def __init__(
        self, inner_samples: int = 32768, outer_samples: int = 1024, inner_dim: int = 100,
        outer_dim: int = 10, batch: int = 64, mu: float = 0.1, cross: float = 0.1,
        inner_optimizer: InnerOptimizer | None = None, replacement: bool = False,
        data_seed: int = 2442, seed: int = 0,
    ) -> None:  # fmt: skip
        self.inner_samples, self.outer_samples, self.batch = inner_samples, outer_samples, batch
        self.inner_dim, self.outer_dim, self.mu, self.cross = inner_dim, outer_dim, mu, cross
        self.replacement, self.data_seed, self.seed = replacement, data_seed, seed
        check_ranges(
            self, "batch >= 1", "inner_samples >= batch", "outer_samples >= batch",
            "inner_dim >= 2", "outer_dim >= 2", "0 < mu <= 1", "cross > 0", "replacement",
            "data_seed", "seed",
        )  # fmt: skip
        for name in ("inner_samples", "outer_samples"):
            if getattr(self, name) % batch:
                raise ValueError(
                    f"StochasticQuadratic needs {name} to be a multiple of batch={batch}, since "
                    f"batches are blocks of equal size; got {name}={getattr(self, name)}."
                )
        self.inner_optimizer = inner_optimizer or SGD(lr=0.1)
        self.inner_batches, self.outer_batches = inner_samples // batch, outer_samples // batch
        self.epoch_seed = None if replacement else seed
        # One copy for all problems of the same data: 80 MB at the benchmark's size.
        self.inner, self.outer = _data(
            inner_samples, outer_samples, inner_dim, outer_dim, mu, cross, data_seed
        )

    def init_outer(self, generator: Generator) -> Tree:
        """Return w = -2, (outer_dim,)."""
        return {"w": torch.full((self.outer_dim,), -2.0, dtype=torch.float64)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return z = 0, (inner_dim,)."""
        return {"z": torch.zeros(self.inner_dim, dtype=torch.float64)}

    def inner_batch_at(self, index: int) -> Samples:
        """Return block `index` of the samples of g."""
        return self._block(self.inner, index)

    def outer_batch_at(self, index: int) -> Samples:
        """Return block `index` of the samples of F."""
        return self._block(self.outer, index)

    def _block(self, samples: Samples, index: int) -> Samples:
        rows = slice(self.batch * index, self.batch * (index + 1))
        return Samples(*(factor[rows] for factor in samples))

    def inner_loss(self, outer: Tree, inner: Tree, batch: Samples) -> Tensor:
        """Return g(w, z) on a batch."""
        return batch.mean(outer["w"], inner["z"])

    def outer_loss(self, outer: Tree, inner: Tree, batch: Samples) -> Tensor:
        """Return F(w, z) on a batch."""
        return batch.mean(outer["w"], inner["z"])

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return |grad h|^2, h above its minimum, and the distance of z from z*(w)."""
        squared = self.hypergradient(outer)["w"].square().sum()
        return {
            "squared_gradient": squared,
            "log10_squared_gradient": squared.clamp_min(1e-300).log10(),
            "excess": self.value(outer) - self.value(self.optimum()),
            "inner_distance": (inner.params["z"] - self.solve(outer)).norm(),
        }

    @cached_property
    def means(self) -> tuple[Means, Means]:
        """The mean quadratics of g and of F."""
        return _means(self.inner), _means(self.outer)

    def solve(self, outer: Tree) -> Tensor:
        """Return z*(w), (inner_dim,)."""
        g, _ = self.means
        solution: Tensor = -torch.linalg.solve(g.H, g.C.T @ outer["w"] + g.a)
        return solution

    def value(self, outer: Tree) -> Tensor:
        """Return h(w) = F(w, z*(w)), a scalar."""
        (_, f), w, z = self.means, outer["w"], self.solve(outer)
        return z @ f.H @ z / 2 + w @ f.U @ w / 2 + w @ f.C @ z + f.a @ z + f.b @ w

    def hypergradient(self, outer: Tree) -> Tree:
        """Return dh/dw in closed form."""
        (g, f), w, z = self.means, outer["w"], self.solve(outer)
        q = torch.linalg.solve(g.H, f.H @ z + f.C.T @ w + f.a)
        return {"w": f.U @ w + f.C @ z + f.b - g.C @ q}

    def optimum(self) -> Tree:
        """Return the w that minimises h."""
        start = {"w": torch.zeros(self.outer_dim, dtype=torch.float64)}
        curvature = _curvature(*self.means)
        return {"w": -torch.linalg.solve(curvature, self.hypergradient(start)["w"])}


@lru_cache(maxsize=1)
def _data(
    inner_samples: int, outer_samples: int, inner_dim: int, outer_dim: int,
    mu: float, cross: float, seed: int,
) -> tuple[Samples, Samples]:  # fmt: skip
    """Return the samples of g and F, of the first draw whose value function is convex."""
    for attempt in range(TRIES):
        key = fold(seed, "stochastic quadratic", attempt)
        inner, outer = (
            _samples(count, inner_dim, outer_dim, mu, cross, generator(fold(key, name)))
            for count, name in ((inner_samples, "inner"), (outer_samples, "outer"))
        )
        means = _means(inner), _means(outer)
        singular = torch.linalg.matrix_rank(means[0].H) < inner_dim
        if not singular and torch.linalg.eigvalsh(_curvature(*means)).min() > 1e-12:
            return inner, outer
    raise ValueError(
        f"StochasticQuadratic drew {TRIES} data sets with inner_samples={inner_samples} and "
        f"outer_samples={outer_samples}, and none has a convex value function; raise the number of "
        f"samples, or lower cross={cross}."
    )


def _samples(
    count: int, inner_dim: int, outer_dim: int, mu: float, cross: float, draw: Generator
) -> Samples:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def rotation(size: int) -> Tensor:
        q: Tensor = torch.linalg.qr(normal(size, size)).Q
        return q

    def spaced(start: float, end: float, count: int) -> Tensor:
        return torch.logspace(0, 1, count, base=end / start, dtype=torch.float64) * start

    def correlated(roots: Tensor) -> Tensor:
        directions = rotation(len(roots))
        return normal(count, len(roots)) @ (directions * roots @ directions.T)

    x = correlated(spaced(mu, 1.0, inner_dim).sqrt())
    flat = torch.zeros(1, dtype=torch.float64)
    u = correlated(torch.cat([flat, spaced(mu, 1.0, outer_dim - 1)]).sqrt())
    rank = min(inner_dim, outer_dim)
    common = normal(count, inner_dim)
    left = common[:, :rank] * spaced(mu, cross, rank) @ rotation(outer_dim)[:rank]
    right = common @ rotation(inner_dim)
    return Samples(x, u, left, right, normal(count, inner_dim), normal(count, outer_dim))


def _means(samples: Samples) -> Means:
    n = len(samples.x)
    return Means(
        samples.x.T @ samples.x / n, samples.u.T @ samples.u / n,
        samples.left.T @ samples.right / n, samples.a.mean(0), samples.b.mean(0),
    )  # fmt: skip


def _curvature(g: Means, f: Means) -> Tensor:
    """Return the second derivative of h."""
    slope = -torch.linalg.solve(g.H, g.C.T)
    mixed = f.C @ slope
    curvature: Tensor = slope.T @ f.H @ slope + f.U + mixed + mixed.T
    return curvature
