"""A low-rank preconditioner from a random sketch of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.solvers import Product, State


@dataclass(frozen=True)
class Nystrom:
    """P^-1 = U diag((l_r + delta) / (l_i + delta)) U^T + (I - U U^T) from r products with H.

    U and l are the eigenvectors and eigenvalues of the randomised Nystrom approximation
    Y (Omega^T Y)^+ Y^T, Y = H Omega, with an orthonormal Gaussian Omega of r columns. Directions
    of negative curvature are dropped from the sketch; without a positive one, P = I.

    Args:
        rank: number r of columns, >= 1.
        refresh: outer steps between two sketches, >= 1.

    Raises:
        ValueError: from a call, when a product with H is not finite.

    Cost: `rank` products every `refresh` outer steps; memory of `rank` copies of theta.

    References: Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 2023;
    Hataya and Yamada, AISTATS 2023.

    Example:
        >>> from metaopt import ConjugateGradient, Implicit, Nystrom, check
        >>> from metaopt.problems.examples import Quadratic
        >>> solve = ConjugateGradient(iterations=5, preconditioner=Nystrom(rank=5))
        >>> (row,) = check(Quadratic(), {"preconditioned": Implicit(solve)})
        >>> row.error < 0.01
        True
    """

    stacks: ClassVar[bool] = True

    rank: int = 20
    refresh: int = 25

    def __post_init__(self) -> None:
        check_ranges(self, "rank >= 1", "refresh >= 1")

    def __call__(
        self, product: Product, like: Tree, damping: Tensor, state: State, key: int
    ) -> tuple[Product, State]:
        """Return the map r -> P^-1 r and the sketch with its age."""
        if not state or state["age"] >= self.refresh:
            state = {**self._sketch(product, like, key), "age": 0}
        aged = {**state, "age": state["age"] + 1}
        if not tree.is_replicated():
            return partial(_apply, state["basis"], state["values"], damping), aged
        # Replicates have sketches of several ranks.
        pairs = zip(state["basis"], state["values"], damping, strict=True)
        applies = [partial(_apply, *sketch) for sketch in pairs]
        return partial(tree.by_replicate, applies), aged

    def _sketch(self, product: Product, like: Tree, key: int) -> dict[str, Any]:
        """Return orthonormal rows, (r, *shape) by name, and their eigenvalues, (r,).

        With replicates these are lists, of each one.
        """
        rank = min(self.rank, sum(tree.shape(t).numel() for t in like.values()))
        columns = [tree.noise(like, fold(key, "nystrom", i)) for i in range(rank)]
        if not tree.is_replicated():
            omega = _orthonormal(_stacked(columns))[0]
            image = _stacked([product({k: t[i] for k, t in omega.items()}) for i in range(rank)])
            basis, values = _eigenvectors(omega, image)
            return {"basis": basis, "values": values}
        count = len(next(iter(like.values())))
        with tree.replicated(False):
            omegas = [
                _orthonormal(_stacked([{k: t[r] for k, t in c.items()} for c in columns]))[0]
                for r in range(count)
            ]
        images = [
            product(_stacked([{k: t[i] for k, t in omega.items()} for omega in omegas]))
            for i in range(rank)
        ]
        with tree.replicated(False):
            sketches = [
                _eigenvectors(omega, _stacked([{k: t[r] for k, t in y.items()} for y in images]))
                for r, omega in enumerate(omegas)
            ]
        return {"basis": [basis for basis, _ in sketches], "values": [v for _, v in sketches]}


def _apply(basis: Tree, values: Tensor, damping: Tensor, r: Tree) -> Tree:
    """Return P^-1 r."""
    if values.numel() == 0:
        return r
    # Outside of the sketch P^-1 is the identity, so its part inside is relative to l_r.
    gain = (values.min() + damping) / (values + damping) - 1.0
    return tree.add(r, _combine(basis, gain * _project(basis, r)))


def _stacked(trees: list[Tree]) -> Tree:
    return {k: torch.stack([t[k] for t in trees]) for k in trees[0]}


def _eigenvectors(omega: Tree, image: Tree) -> tuple[Tree, Tensor]:
    """Return orthonormal rows and their eigenvalues, from Omega and H Omega."""
    # Y + shift Omega instead of Y: a core that is positive definite in floating point. The
    # shift is taken off the eigenvalues at the end (Frangella et al., algorithm 2.1).
    size = sum(t[0].numel() for t in omega.values())
    eps = max(torch.finfo(t.dtype).eps for t in image.values())
    shift = eps * tree.norm(image) * size**0.5
    image = tree.add(image, omega, shift)
    core = _symmetric(_gram(omega, image))
    if not core.isfinite().all():  # torch's eigenvalues would raise an error of their own
        raise ValueError(
            "Nystrom: a product with the Hessian of the inner loss is not finite. Lower the "
            "inner learning rate, or look for a second derivative of inner_loss that is "
            "infinite, such as that of a square root or a norm at 0."
        )
    values, vectors = torch.linalg.eigh(core)
    positive = values > shift
    root = vectors[:, positive] * values[positive].rsqrt()
    basis, values = _orthonormal(_mix(root.T, image))
    # Directions without curvature are left out: without damping their gain would be 0 / 0.
    curved = values > shift
    return {k: rows[curved] for k, rows in basis.items()}, values[curved] - shift


def _gram(a: Tree, b: Tree) -> Tensor:
    return torch.stack([_matrix(a[k]) @ _matrix(b[k]).T for k in a]).sum(0)


def _matrix(rows: Tensor) -> Tensor:
    """Return rows as those of a matrix, (r, n); a parameter without axes has n = 1."""
    return rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _mix(matrix: Tensor, rows: Tree) -> Tree:
    return {k: torch.tensordot(matrix.to(t.dtype), t, 1) for k, t in rows.items()}


def _orthonormal(rows: Tree) -> tuple[Tree, Tensor]:
    """Return orthonormal rows of the same span, and the squared singular values."""
    # By the small Gram matrix: a QR would need all tensors in one matrix.
    values, vectors = torch.linalg.eigh(_symmetric(_gram(rows, rows)))
    return _mix(
        (vectors * values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt()).T, rows
    ), values


def _project(basis: Tree, r: Tree) -> Tensor:
    return torch.stack([_matrix(basis[k]) @ r[k].flatten() for k in basis]).sum(0)


def _combine(basis: Tree, weights: Tensor) -> Tree:
    return {k: torch.tensordot(weights.to(t.dtype), t, 1) for k, t in basis.items()}
