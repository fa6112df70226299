"""The dense Hessian, factorized, as a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.solvers import Product, Solution, State, positive


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
        size = positive(torch.linalg.vector_norm(flat, dim=-1))
        return _unflatten(q.squeeze(-1), v), {}, {"solve/residual": error / size}


def _flatten(values: Tree) -> Tensor:
    """Return all entries, (n,) or (R, n)."""
    rows = [t.reshape((*t.shape[: t.ndim - len(tree.shape(t))], -1)) for t in values.values()]
    return torch.cat(rows, -1)


def _unflatten(flat: Tensor, like: Tree) -> Tree:
    parts = flat.split([tree.shape(t).numel() for t in like.values()], -1)
    return {k: part.reshape(t.shape) for (k, t), part in zip(like.items(), parts, strict=True)}
