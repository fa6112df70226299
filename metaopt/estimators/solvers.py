"""Solvers for H q = v, with H = d2g/dtheta2 known through products only.

A solver is a value: `solver(product, v, state, key)` returns q, the state for the next outer step
and metrics. `state` is `{}` at the start. Cost is counted in products with H.

With replicates (`metaopt.engine.tree.replicated`) each has a system of its own, and one product
serves all of them: where a replicate is done, its solution stays while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from metaopt.engine.protocols import Tree

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


def positive(x: Tensor) -> Tensor:
    """Return a norm or its square, for a division where it may be 0."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)
