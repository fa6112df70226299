"""A single loop with variance reduction: every batch's last derivatives are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.schedules import Schedule
from metaopt.estimators.single_loop import Evaluation, SingleLoop, Terms, require_finite

OF_F = ("v", "direct")
"""The terms on batches of F."""

Table = dict[str, dict[str, Tree]]
"""Of each term its `rows`, (blocks, ...) by name, and their `mean`."""


class Saba(SingleLoop):
    """SOBA with SAGA's directions: D_i <- d_i - memory_i + mean of the memory, memory_i <- d_i.

    d_i stands for each of dg/dtheta, H q and J^T q on batch i of g, and of dF/dtheta and dF/dphi on
    batch j of F; theta, q and phi are stepped along D as in `Soba`. Once each batch was drawn at
    fixed variables, D is the derivative of the whole g and F. With constant steps the error falls
    at a linear rate where that of SOBA stalls. Scale: free of the inner learning rate.

    Args:
        step: step size of q, or `None` for the inner learning rate of the moment; see `Soba`.
        schedule: factor on `step` by inner step, or `None`: constant steps suit this method.

    Cost: that of `Soba`, about 4.2 gradients; memory (blocks of g + 1) (2 |theta| + |phi|) and
    (blocks of F + 1) (|theta| + |phi|).

    The memory starts at zero, so that directions are short in the first epoch.

    Raises:
        TypeError: from `check`, the problem is no `metaopt.Finite`.
        ValueError: from `check`, a batch does not say the same whenever it is drawn.

    Reference: Dagréou et al., A framework for bilevel optimization, NeurIPS 2022 (SABA); Defazio
    et al., SAGA, NeurIPS 2014.

    Example:
        >>> from metaopt import Descent, run
        >>> from metaopt.estimators import Saba
        >>> from metaopt.problems.examples import StochasticQuadratic
        >>> problem = StochasticQuadratic(128, 48, 8, 3, batch=8, mu=0.5)
        >>> result = run(problem, Saba(), Descent("sgd", lr=0.1), 300, progress=False)
        >>> result.metrics["eval/squared_gradient"] < 1e-3
        True
    """

    memory = ("q", "table")
    needs_blocks = True

    def __init__(self, step: float | None = None, schedule: Schedule | None = None) -> None:
        super().__init__(step, schedule)
        self._table: Table | None = None

    def directions(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, q: Tree, key: int
    ) -> tuple[Evaluation, dict[str, float]]:
        """Return the reduced terms, with the memory updated."""
        i, j = loop.blocks(loop.draw(inner, key, 0)), loop.blocks(loop.outer_draw(inner, key))
        at = self.evaluated(loop, outer, inner, q, key)
        terms = averaged(at.terms)
        if self._table is None:
            self._table = _zeros(loop, terms)
        reduced = {
            name: _reduced(self._table[name], values, j if name in OF_F else i)
            for name, values in terms._asdict().items()
        }
        return at._replace(terms=Terms(**reduced)), {"gradients": 2, "hvps": 1}


def averaged(terms: Terms) -> Terms:
    """Return terms that are the same on all ranks, as what is kept of them must be."""
    return Terms(*(distributed.mean(part) for part in terms))


def _zeros(loop: InnerLoop, terms: Terms) -> Table:
    """Return the memory of batches that were never drawn."""
    problem = require_finite(loop, "Saba")
    axis = 1 if tree.is_replicated() else 0
    table: Table = {}
    for name, values in terms._asdict().items():
        count = problem.outer_batches if name in OF_F else problem.inner_batches
        rows = {
            k: t.new_zeros((*t.shape[:axis], count, *t.shape[axis:])) for k, t in values.items()
        }
        table[name] = {"rows": rows, "mean": tree.zeros_like(values)}
    return table


def _reduced(part: dict[str, Tree], values: Tree, blocks: Tensor) -> Tree:
    """Return values - memory + mean, and put the values in the memory of the blocks.

    `blocks` is one number, or with replicates that of each.
    """
    rows, mean, directions = part["rows"], part["mean"], {}
    place = (torch.arange(len(blocks)), blocks) if blocks.ndim else (blocks,)
    for name, value in values.items():
        count = rows[name].shape[blocks.ndim]
        change = value - rows[name][place]
        directions[name] = change + mean[name]
        mean[name] = mean[name] + change / count
        rows[name][place] = value
    return directions
