"""What estimators talk to: batches, losses and inner steps of a problem.

`InnerLoop` runs a `GradientProblem`, `metaopt.engine.black_box_loop.BlackBoxLoop` a problem that
steps itself; the engine makes one of them, once. A problem inherits from neither, so that its
methods may have any name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.buffers import carried_buffers, computed_buffers
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import Batch, GradientProblem, GradientState
from metaopt.engine.inner_level import InnerLevel
from metaopt.engine.inner_progress import Progress
from metaopt.engine.members import OneMember
from metaopt.engine.module_check import check_training
from metaopt.engine.protocols import BilevelProblem, Feedback, Problem, Tree
from metaopt.engine.random import Draw, generator, replay


class InnerLoop(InnerLevel, OneMember):
    """The inner level of a gradient problem, stepped in place (`step_`) or on a graph (`step`).

    Example:
        loop = InnerLoop(problem)
        inner = loop.start(outer, None, key)
        inner = loop.run(outer, inner, key, steps=100)
        loss = loop.outer_value(outer, inner, loop.outer_draw(inner, key))

    Args:
        problem: what is trained on what.

    Attributes:
        folder: where an estimator may keep what a killed outer step goes on from, or `None`; the
            run sets it.
        meta_batches: the same inner level for several tasks at once, by their number; see
            `metaopt.engine.meta_batch`.
        progress: how far the current inner run has come.
        half_precision: the dtypes of half precision that g computes in; filled by `check_modules`.
    """

    def __init__(self, problem: GradientProblem) -> None:
        super().__init__(problem)
        self.folder: Path | None = None
        self.meta_batches: dict[int, Any] = {}
        self.progress = Progress()
        self.half_precision: frozenset[torch.dtype] = frozenset()
        self._modules_checked = False
        self._computed: dict[tuple[str, ...], frozenset[str]] = {}

    # What the engine asks of a problem in the course of a run.

    def initial_outer(self, key: int) -> Tree:
        """Return the first outer variable."""
        outer: Tree = self.problem.init_outer(generator(key))
        return outer

    def observe(self, outer: Tree, inner: GradientState, feedback: Feedback) -> GradientState:
        """Return the inner state with what the problem notes of the feedback."""
        state: GradientState = self.problem.observe(outer, inner, feedback)
        return state

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float | Tensor]:
        """Return the problem's figures on held-out data."""
        return self.problem.metrics(outer, inner)

    def start(self, outer: Tree, last: GradientState | None, key: int) -> GradientState:
        """Return the last state (warm start), or a new one."""
        if last is not None and self.problem.warm_start:
            return last
        with torch.no_grad():
            return self.initial(outer, key)

    @torch.no_grad()
    def evaluate(self, outer: Tree, inner: GradientState, key: int) -> Feedback:
        """Return F on the outer batch of `key`."""
        return Feedback(self.outer_value(outer, inner, self.outer_draw(inner, key)))

    def finish(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return the inner level after the problem's last phase."""
        return self.problem.finish(outer, inner, self, key)

    # Steps.

    def check_modules(self, outer: Tree, inner: GradientState) -> None:
        """Raise a `ValueError` if a step on the problem's modules would be wrong; tried once.

        The first step asks for it; an estimator's `check` does so before the run.
        """
        if not self._modules_checked:
            # What a problem draws from torch's global generators must not move those of the run.
            with replay(0):
                self.half_precision = check_training(self, outer, inner)
            self._modules_checked = True

    def run(self, outer: Tree, inner: GradientState, key: int, steps: int) -> GradientState:
        """Return the state after `steps` steps without a graph.

        `inner` is modified in place; do not use it afterwards.
        """
        for k in self.progress.track(range(steps), "inner step"):
            inner = self.step_(outer, inner, self.draw(inner, key, k))
        return inner

    def step_(
        self, outer: Tree, inner: GradientState, draw: Draw, batch: Batch = None
    ) -> GradientState:
        """Take one inner step in place: the argument's tensors become the result's."""
        if batch is None:  # a phase with batches of its own may come before there is a phi
            self.check_modules(outer, inner)
        # Leaves on the memory of `inner.params`, which `step_along` then updates. Off the graph of
        # phi, so that the reverse pass stops at theta.
        params = tree.leaves(inner.params)
        outer = tree.detach(outer)
        loss = self.inner_value(outer, inner._replace(params=params), draw, batch)
        grads = vjp([tree.total(loss)], [*params.values()])
        return self.step_along(outer, inner, tree.like(params, grads), loss)

    @torch.no_grad()
    def step_along(
        self, outer: Tree, inner: GradientState, grads: Tree, loss: Tensor
    ) -> GradientState:
        """Take one inner step in place along a gradient; it is averaged over ranks here.

        `loss` is reported with the state.
        """
        mean = distributed.mean(grads)
        # A module that writes what it has computed in a buffer writes the graph of it, too.
        inner = inner._replace(buffers=tree.detach(inner.buffers))
        return self.stepped(outer, self.step_params_(outer, inner, mean), loss)

    def step(self, outer: Tree, inner: GradientState, draw: Draw) -> GradientState:
        """Take one inner step on the graph of `outer` and `inner`; new tensors."""
        self.check_modules(outer, inner)
        at = copied = inner.at(inner.params)  # a segment may be run again, with its buffers
        if self.updates_state:
            # theta_k enters g twice where the state was computed from it. The gradient of the step
            # is the partial one, so g is evaluated at an alias that the state does not hang on.
            at = copied._replace(params={k: p.view_as(p) for k, p in inner.params.items()})
        params = at.params
        loss = self.inner_value(outer, at, draw)
        grads = vjp([tree.total(loss)], [*params.values()], create_graph=True)
        mean = distributed.mean_on_graph(tree.like(params, grads), outer)
        return self.stepped(outer, self.stepped_params(outer, copied, mean), loss)

    def stepped_params(self, outer: Tree, inner: GradientState, grads: Tree) -> GradientState:
        """Return the state with parameters and moments stepped; new tensors, on the graph."""
        optimizer = self.optimizer(outer, inner.step)
        params, moments = optimizer.update(inner.params, grads, inner.optimizer, inner.step)
        return inner._replace(params=params, optimizer=moments)

    def step_params_(self, outer: Tree, inner: GradientState, grads: Tree) -> GradientState:
        """Return the same, stepped in place."""
        optimizer = self.optimizer(outer, inner.step)
        optimizer.update_(inner.params, grads, inner.optimizer, inner.step)
        return inner

    @cached_property
    def carried_buffers(self) -> frozenset[str]:
        """Names of the buffers through which a derivative leads to a loss one step on."""
        # What a problem draws from torch's global generators here must not move those of the run.
        with replay(0):
            return carried_buffers(self)

    def computed_buffers(self, sources: tuple[str, ...]) -> frozenset[str]:
        """Names of the buffers that an inner step computes from the sources, of theta and phi."""
        if sources not in self._computed:
            with replay(0):
                self._computed[sources] = computed_buffers(self, sources)
        return self._computed[sources]

    @property
    def dropped_buffers(self) -> frozenset[str]:
        """Names of the buffers that a step computes and that carry no derivative.

        At the first state no loss reads them.
        """
        return self.computed_buffers(("theta", "phi")) - self.carried_buffers

    def leaves(self, inner: GradientState) -> GradientState:
        """Return the state with all that a derivative flows through as new leaves of a graph."""
        # The moments as well: theta of later steps depends on theta through them.
        return inner._replace(
            params=tree.leaves(inner.params),
            buffers={
                k: tree.leaf(v) if k in self.carried_buffers else v
                for k, v in inner.buffers.items()
            },
            state=tree.map_tensors(tree.leaf, inner.state),
            optimizer={k: tree.leaves(v) for k, v in inner.optimizer.items()},
        )

    def differentiated(self, inner: GradientState) -> list[Tensor]:
        """Return what a derivative flows through: parameters, problem's state, buffers, moments.

        In this order: F reads all but the moments, so its adjoint is the first part of the list.
        """
        floating = (t for t in tree.tensors(inner.state) if t.is_floating_point())
        buffers = (t for k, t in inner.buffers.items() if k in self.carried_buffers)
        return [*inner.params.values(), *floating, *buffers, *tree.tensors(inner.optimizer)]

    def stepped(self, outer: Tree, inner: GradientState, loss: Tensor) -> GradientState:
        """Return the state whose parameters were stepped, with the problem's own state updated."""
        state = self.updated_state(outer, inner, inner.step + 1)
        loss, replicates = loss.detach(), self.replicates
        mean = loss / replicates if replicates > 1 else loss
        return GradientState(
            inner.params, inner.buffers, state, inner.optimizer, inner.step + 1, mean
        )

    def updated_state(self, outer: Tree, inner: GradientState, step: int) -> dict[str, Any]:
        """Return the problem's own state after `step` steps, from `inner.state` one step before."""
        if not self.updates_state:
            return inner.state
        return self.new_state(outer, inner, step)

    def new_state(self, outer: Tree, inner: GradientState, step: Any) -> dict[str, Any]:
        """Return what `update_state` returns; `step` is one number, or one for each member.

        Raises:
            ValueError: it changes the state in place, of which a derivative needs the old values.
        """
        try:
            state: dict[str, Any] = self.apply("update_state", outer, inner, step)
        except RuntimeError as error:
            if "in-place operation" not in str(error):
                raise
            raise ValueError(
                f"{type(self.problem).__name__}.update_state changes a tensor in place; return new "
                f"ones, such as average.lerp(...) for average.lerp_(...)."
            ) from error
        return state


def loop_of(problem: BilevelProblem) -> InnerLoop | BlackBoxLoop:
    """Return the loop that runs a problem's inner level.

    Raises:
        TypeError: an object of another kind.
    """
    if isinstance(problem, GradientProblem):
        return InnerLoop(problem)
    if isinstance(problem, Problem):
        return BlackBoxLoop(problem)
    raise TypeError(
        f"{type(problem).__name__} is no problem; make it a subclass of metaopt.GradientProblem "
        f"(two losses) or metaopt.Problem (a black box)."
    )
