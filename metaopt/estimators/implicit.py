"""The implicit function theorem at the inner solution, with a choice of linear solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.meta_batch import MetaBatch
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.conjugate_gradient import ConjugateGradient
from metaopt.estimators.exact import Exact
from metaopt.estimators.held_fixed import Held
from metaopt.estimators.inner_run import Result
from metaopt.estimators.neumann import Neumann
from metaopt.estimators.solvers import Identity, Solver
from metaopt.estimators.task_average import TaskAverage, mean_feedback

BLOCKWISE = (ConjugateGradient, Exact, Identity)
"""Solvers that leave each block of a matrix of several the solution it has alone, or its error."""


class Implicit(TaskAverage):
    """dF/dphi - J^T q with H q = v, at the theta that K inner steps reach.

    H = d2g/dtheta2, J = d2g/dtheta dphi, v = dF/dtheta. Exact at an inner solution with an exact
    solve; elsewhere it is the hypergradient of a solution that theta only approximates.
    Scale: free of the inner learning rate. The graph of dg/dtheta is built once and retained for
    all products of a solve.

    The system is that of g plus what the inner optimizer adds to it, its weight decay
    (`InnerOptimizer.stationary_gradient`).

    Args:
        solve: linear solver; see `metaopt.estimators.solvers`.
        inner_steps: number K of inner steps before the solve, >= 0.
        any_start: accept a theta_0 that is made from phi (`warm_start=False`), since the solution
            does not depend on it: g has a proximal term, and K steps reach the solution (iMAML,
            Rajeswaran et al., NeurIPS 2019). Without it such a problem is refused, and with it one
            where phi enters by theta_0 alone.
        tasks: number B of tasks whose hypergradients are averaged, >= 1; see `Unroll`. Each has a
            solve of its own, from a cold start; `ConjugateGradient`, `Exact` and `Identity` run
            them together, to the end of the last.
        fresh_batches: take each product of the solve on a batch of its own. StocBiO is this with
            Neumann(step=...), AmIGO with GradientDescent(...).

    Cost: K gradients, then 2 more and the solver's products plus one (a product on the retained
    graph costs about 2.1 gradients; see benchmarks/README.md); with fresh batches, one gradient
    more for each product.

    References: Pedregosa, ICML 2016; Lorraine et al., AISTATS 2020; Grazzi et al., ICML 2020; Ji et
    al., StocBiO, ICML 2021; Arbel and Mairal, AmIGO, ICLR 2022.

    Example:
        >>> from metaopt import ConjugateGradient, Implicit, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"cg": Implicit(ConjugateGradient(iterations=20))})
        >>> row.error < 0.001
        True
    """

    least_steps = 0
    memory = ("solver",)
    second_derivatives = "reverse"

    def __init__(
        self,
        solve: Solver | None = None,
        inner_steps: int = 1,
        any_start: bool = False,
        tasks: int = 1,
        fresh_batches: bool = False,
    ) -> None:
        super().__init__(inner_steps, tasks)
        self.solve, self.any_start = solve or ConjugateGradient(), any_start
        self.fresh_batches = fresh_batches
        check_ranges(self, "fresh_batches")
        if fresh_batches and getattr(self.solve, "step", None) is None:
            raise ValueError(
                f"Implicit(fresh_batches=True) needs a solver that takes products with another "
                f"matrix each time: GradientDescent(...), or Neumann(step=...) with a step that is "
                f"given; got {self.solve!r}."
            )
        self.needs_stationarity = not isinstance(self.solve, Identity)
        self.carries_optimizer = self.needs_stationarity
        # torch factorizes no matrices of half precision.
        if isinstance(self.solve, Exact) or getattr(self.solve, "preconditioner", None):
            self.needs_precision = ("theta",)
        self._solver: dict[str, Any] = {}
        self.stacks = getattr(self.solve, "stacks", False)

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        super().check(loop)
        if loop.problem.replicates > 1 and isinstance(self.solve, (ConjugateGradient, Neumann)):
            raise ValueError(
                f"{type(self.solve).__name__} would solve the systems of the "
                f"{loop.problem.replicates} replicates of {type(loop.problem).__name__} with step "
                f"lengths that they share, so that none gets the solution it would get alone. Use "
                f"estimator=implicit_exact, unroll or finite_difference, or let the problem state "
                f"one replicate and run it with seeds={loop.problem.replicates}."
            )

    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the implicit hypergradient there."""
        return self._solved(loop, outer, loop.run(outer, inner, key, self.inner_steps), key)

    def together(self, batch: MetaBatch, outer: Tree, key: int) -> Result:
        """Return the same for all tasks: steps together, then their solves.

        The matrix of all tasks has a block for each. Solvers with numbers of each block solve them
        together, with the solutions that each task has alone.
        """
        inner = batch.run(outer, batch.start(outer, None, key), key, self.inner_steps)
        seeds = len(batch.loop.shape)
        # A preconditioner draws, for each task other numbers than for all of them.
        draws = getattr(self.solve, "preconditioner", None) is not None
        if isinstance(self.solve, BLOCKWISE) and not draws:
            with tree.replicated(seeds + 1):
                inner, feedback = self._solved(batch, outer, inner, key)
            metrics = {k: _mean_of_tasks(v, seeds) for k, v in feedback.metrics.items()}
            return self.of_first_task(batch, inner, replace(feedback, metrics=metrics))
        results = [
            self._solved(loop, outer, tree.clone(batch.task(inner, i)), own)
            for i, (loop, own) in enumerate(batch.each_task(key))
        ]
        return results[0][0], mean_feedback([feedback for _, feedback in results])

    def _solved(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return a state and the implicit hypergradient there."""
        value, v, direct = self.outer_gradients(loop, outer, inner, key)
        phi, theta = tree.leaves(outer), tree.leaves(inner.params)

        def slope_on(number: int | None) -> Tree:
            draw = loop.solve_draw(inner, key, self.inner_steps, number)
            return self._slope(loop, phi, theta, inner, draw)

        with twice_differentiable():
            slope = slope_on(None)
            product = _Product(slope_on if self.fresh_batches else slope, theta)
            v = _read(slope, v)
            q, last, metrics = self.solve(product, v, self._solver, fold(key, "solve"))
            # The solution of one task is no start for the next one's.
            self._solver = last if self.tasks == 1 else {}
            cross = tree.like(phi, pull_back(slope, list(phi.values()), q))
        grad = tree.add(direct, cross, -1.0)
        gradients = self.inner_steps + 2 + (product.calls if self.fresh_batches else 0)
        return self.result(inner, value, grad, metrics, gradients=gradients, hvps=product.calls + 1)

    def _slope(
        self, loop: InnerLoop, phi: Tree, theta: Tree, inner: GradientState, draw: Draw
    ) -> Tree:
        """Return what is zero at the stationary point, on the graph of phi and theta."""
        # `at` copies the buffers: no step is taken here, so the state's own stay as they are.
        held = Held(loop, type(self).__name__, inner, state=True)
        loss, slope = inner_slope(loop, phi, held.inner.at(theta), draw)
        held.refuse_read("inner_loss", loss)
        if not self.needs_stationarity:
            return slope
        # Of the last step: a learned schedule may end there.
        optimizer = loop.optimizer(phi, max(inner.step - 1, 0))
        return optimizer.stationary_gradient(theta, slope)


def _mean_of_tasks(value: Tensor | float, axis: int) -> Tensor:
    value = torch.as_tensor(value)
    return value.mean(axis) if value.ndim > axis else value


def _read(slope: Tree, v: Tree) -> Tree:
    """Return v with zeros for parameters that g does not read, such as a head of F alone.

    They have no curvature, so that no q solves H q = v there, and no cross term, so that none is
    needed.
    """
    # What autograd fills in is a leaf, not a derivative. On any rank: H is a mean over ranks.
    here = {k: s.grad_fn is not None for k, s in slope.items()}
    read = distributed.on_any_rank(here, next(iter(slope.values())))
    return {k: t if read[k] else torch.zeros_like(t) for k, t in v.items()}


class _Product:
    """p -> H p, averaged over ranks; counts its calls.

    Args:
        slope: dg/dtheta on a graph, which is retained, or a function of the number of a call that
            makes one on another batch.
        theta: what it is differentiated in.
    """

    def __init__(self, slope: Tree | Callable[[int], Tree], theta: Tree) -> None:
        self.slope, self.theta, self.calls = slope, theta, 0

    @property
    def fresh(self) -> bool:
        """Whether each product is with another matrix."""
        return callable(self.slope)

    def __call__(self, p: Tree) -> Tree:
        slope = self.slope(self.calls) if callable(self.slope) else self.slope
        self.calls += 1
        # Retained, since a solver asks for several products; the cross term is the last use.
        image = pull_back(slope, list(self.theta.values()), p, retain_graph=not self.fresh)
        return distributed.mean(tree.like(self.theta, image))


def inner_slope(
    loop: InnerLoop, phi: Tree, inner: GradientState, draw: Draw
) -> tuple[Tensor, Tree]:
    """Return g and dg/dtheta, on the graph of phi and theta."""
    loss = loop.inner_value(phi, inner, draw)
    slopes = vjp([tree.total(loss)], [*inner.params.values()], create_graph=True)
    return loss, tree.like(inner.params, slopes)


def pull_back(
    slope: Tree, inputs: list[Tensor], vector: Tree, retain_graph: bool = False
) -> list[Tensor]:
    """Return (d slope / d inputs)^T vector; zeros where nothing connects them."""
    # Where g is linear in a parameter, its slope is a constant, which torch refuses.
    linked = [k for k, s in slope.items() if s.requires_grad]
    if not linked:
        return [torch.zeros_like(t) for t in inputs]
    slopes, vectors = [slope[k] for k in linked], [vector[k] for k in linked]
    return list(vjp(slopes, inputs, vectors, retain_graph=retain_graph))
