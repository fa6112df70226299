"""A single loop with recursive variance reduction: each batch is evaluated at two points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.finite import Finite
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.schedules import Schedule
from metaopt.estimators.saba import averaged
from metaopt.estimators.single_loop import Evaluation, SingleLoop, Terms, require_finite


class Srba(SingleLoop):
    """SOBA with SARAH's directions: D <- D + d_i(now) - d_i(before), on the same batch i.

    d_i stands for each of dg/dtheta, H q, J^T q, dF/dtheta and dF/dphi, `now` for (phi, theta, q)
    and `before` for those of the last step. Every `period` outer steps D is the derivative of the
    whole g and F. Scale: free of the inner learning rate.

    Args:
        step: step size of q, or `None` for the inner learning rate of the moment; see `Soba`.
        schedule: factor on `step` by inner step, or `None`: constant steps suit this method.
        period: outer steps from one whole pass over the data to the next, >= 1, or `None` for half
            as many as there are blocks, the paper's (n + m) / 2 samples.

    Cost: twice that of `Soba`, about 8.4 gradients, and every `period` steps a gradient and a
    product for each block of g, and a gradient for each of F; memory for the variables and
    directions of one step.

    The whole pass uses the buffers of a module (BatchNorm) as they are.

    Raises:
        TypeError: from `check`, the problem is no `metaopt.Finite`.
        ValueError: from `check`, a batch does not say the same whenever it is drawn.

    References: Dagréou et al., A lower bound and a near-optimal algorithm for bilevel empirical
    risk minimization, AISTATS 2024 (SRBA); Nguyen et al., SARAH, ICML 2017.

    Example:
        >>> from metaopt import Descent, run
        >>> from metaopt.estimators import Srba
        >>> from metaopt.problems.examples import StochasticQuadratic
        >>> problem = StochasticQuadratic(128, 48, 8, 3, batch=8, mu=0.5)
        >>> result = run(problem, Srba(), Descent("sgd", lr=0.1), 150, progress=False)
        >>> result.metrics["eval/squared_gradient"] < 1e-2
        True
    """

    memory = ("q", "before", "last")
    needs_blocks = True

    def __init__(
        self,
        step: float | None = None,
        schedule: Schedule | None = None,
        period: int | None = None,
    ) -> None:
        super().__init__(step, schedule)
        self.period = period
        check_ranges(self, "period >= 1 or null")
        self._before: dict[str, Any] | None = None
        self._last: dict[str, Tree] | None = None

    def directions(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, q: Tree, key: int
    ) -> tuple[Evaluation, dict[str, float]]:
        """Return the recursive terms, or every `period` steps those of all data."""
        problem = require_finite(loop, "Srba")
        period = self.period or max(1, (problem.inner_batches + problem.outer_batches) // 2)
        before, last = self._before, self._last
        # Cloned, since theta and phi are stepped in place.
        self._before = tree.clone({"phi": outer, "theta": inner.params, "q": q})
        if before is None or last is None or loop.outer_step % period == 0:
            at = self._whole(loop, problem, outer, inner, q, key)
            gradients, hvps = problem.inner_batches + problem.outer_batches, problem.inner_batches
        else:
            at = self.evaluated(loop, outer, inner, q, key)
            then = inner.at(before["theta"])
            old = averaged(self.evaluated(loop, before["phi"], then, before["q"], key).terms)
            changes = [tree.add(a, b, -1.0) for a, b in zip(averaged(at.terms), old, strict=True)]
            terms = Terms(*(tree.add(last[k], c) for k, c in zip(last, changes, strict=True)))
            at, gradients, hvps = at._replace(terms=terms), 4, 2
        self._last = at.terms._asdict()
        return at, {"gradients": gradients, "hvps": hvps}

    def _whole(
        self, loop: InnerLoop, problem: Finite, outer: Tree, inner: GradientState, q: Tree, key: int
    ) -> Evaluation:
        """Return the mean terms over all blocks, and both losses on the blocks of this step."""
        draw, outer_draw = loop.draw(inner, key, 0), loop.outer_draw(inner, key)
        inner_losses, outer_losses = [], []

        def of_g(block: int) -> list[Tree]:
            at = inner.at(inner.params)
            terms, loss = self.inner_terms(loop, outer, at, q, draw.of_block(block))
            inner_losses.append(loss)
            return [*terms]

        def of_F(block: int) -> list[Tree]:
            at = outer_draw.of_block(block)
            value, v, direct = self.outer_gradients(loop, outer, inner, key, draw=at)
            outer_losses.append(value)
            return [v, direct]

        slope, product, cross = _mean(of_g, problem.inner_batches)
        v, direct = _mean(of_F, problem.outer_batches)
        terms = averaged(Terms(slope, product, cross, v, direct))
        # As at the other steps, so that the log is one curve.
        drawn = (
            of_blocks(losses, loop.blocks(each))
            for losses, each in ((inner_losses, draw), (outer_losses, outer_draw))
        )
        return Evaluation(terms, *drawn)


def of_blocks(losses: Sequence[Tensor], blocks: Tensor) -> Tensor:
    """Return the loss of a block, or with replicates that of each one's block.

    Args:
        losses: of all blocks, each a scalar or (R,).
        blocks: which, a scalar or (R,), on the CPU.
    """
    whole = torch.stack(tuple(losses))
    return whole.gather(0, blocks.to(whole.device).unsqueeze(0)).squeeze(0)


def _mean(of: Callable[[int], list[Tree]], blocks: int) -> list[Tree]:
    """Return the mean of trees over all blocks."""
    total = [tree.scale(part, 1 / blocks) for part in of(0)]
    for block in range(1, blocks):
        total = [tree.add(a, b, 1 / blocks) for a, b in zip(total, of(block), strict=True)]
    return total
