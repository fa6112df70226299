"""What estimators talk to: batches, losses and inner steps of a problem.

`InnerLoop` runs a `GradientProblem`, `metaopt.engine.black_box_loop.BlackBoxLoop` a problem that
steps itself; the engine makes one of them, once. A problem inherits from neither, so that its
methods may have any name.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.buffers import carried_buffers, computed_buffers, statistics
from metaopt.engine.gradient_problem import Batch, GradientProblem, GradientState, InnerTensors
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.inner_progress import Progress
from metaopt.engine.module_check import check_training
from metaopt.engine.protocols import BilevelProblem, Feedback, Problem, Tree
from metaopt.engine.random import Draw, fold, generator, replay

T = TypeVar("T")
LOSSES = ("inner_loss", "outer_loss")


class InnerLoop:
    """The inner level of a gradient problem, stepped in place (`step_`) or on a graph (`step`).

    `key` is that of one outer step's inner run: its batches and dropout masks follow from it, from
    the outer step and from the number of the inner step.

    Example:
        loop = InnerLoop(problem)
        inner = loop.start(outer, None, key)
        inner = loop.run(outer, inner, key, steps=100)
        loss = loop.outer_value(outer, inner, loop.outer_draw(inner, key))

    Args:
        problem: what is trained on what.

    Attributes:
        outer_step: outer steps taken so far; the engine sets it.
        folder: where an estimator may keep what a killed outer step goes on from, or `None`; the
            run sets it.
        task_index: which task of a meta-batch runs; 0 where there is one.
        meta_batches: the same inner level for several tasks at once, by their number; see
            `metaopt.engine.meta_batch`.
        updates_state: whether inner steps change the problem's own state.
        prepares_batches: whether the problem adds to its inner batches.
        has_buffers: whether the problem's module has buffers.
        progress: how far the current inner run has come.
        half_precision: the dtypes of half precision that g computes in; filled by `check_modules`.
    """

    def __init__(self, problem: GradientProblem) -> None:
        self.problem = problem
        self.outer_step = self.task_index = 0
        self.folder: Path | None = None
        self.meta_batches: dict[int, Any] = {}
        self.progress = Progress()
        self.half_precision: frozenset[torch.dtype] = frozenset()
        self._modules_checked = False
        self._computed: dict[tuple[str, ...], frozenset[str]] = {}
        optimizer = getattr(problem, "inner_optimizer", None)
        if isinstance(optimizer, type) or not (
            callable(optimizer) or hasattr(optimizer, "update_")
        ):
            raise TypeError(
                f"{type(problem).__name__}.inner_optimizer must be an inner optimizer, such as "
                f"SGD(lr=0.1), or a function of phi that makes one; got {optimizer!r}."
            )
        # Where update_state is the base's, no step changes the state, and no estimator has to carry
        # or refuse its derivative.
        self.updates_state = type(problem).update_state is not GradientProblem.update_state
        self.has_buffers = type(problem).init_buffers is not GradientProblem.init_buffers
        self.prepares_batches = type(problem).prepare_batch is not GradientProblem.prepare_batch

    def optimizer(self, outer: Tree, step: int) -> InnerOptimizer:
        """Return how theta is stepped after `step` steps, on the graph of `outer`."""
        optimizer = self.problem.inner_optimizer
        if not callable(optimizer):
            return optimizer
        name = f"{type(self.problem).__name__}.inner_optimizer(outer, step={step})"
        try:
            made = optimizer(outer, step)
        except IndexError as error:
            raise ValueError(
                f"{name}: {error}. step counts the inner steps since theta_0, on through the outer "
                f"steps of a warm start: hold one rate for each, or index by min(step, ...) or "
                f"step % ..."
            ) from error
        if not hasattr(made, "update_"):
            raise TypeError(
                f"{name} returned {type(made).__name__}; return an inner optimizer, such as "
                f"SGD(lr=outer['log_lr'].exp())."
            )
        return made

    @property
    def replicates(self) -> int:
        """The number of terms that g is a sum of."""
        return self.problem.replicates

    @cached_property
    def frozen(self) -> Tree:
        """The weights that nobody trains, off every graph; the problem's own memory."""
        return tree.detach(dict(self.problem.frozen))

    @cached_property
    def frozen_hash(self) -> str | None:
        """A hash of names and values of the frozen weights; `None` where there are none."""
        if not self.frozen:
            return None
        digest = blake2b(digest_size=16)
        for name, value in sorted(self.frozen.items()):
            flat = value.detach().cpu().contiguous().view(-1)
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

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

    # Where a run starts.

    def start(self, outer: Tree, last: GradientState | None, key: int) -> GradientState:
        """Return the last state (warm start), or a new one."""
        if last is not None and self.problem.warm_start:
            return last
        with torch.no_grad():
            return self.initial(outer, key)

    def initial(self, outer: Tree, key: int) -> GradientState:
        """Return a new state; what is made from `outer` hangs on its graph."""
        # Copied, on the graph: `step_` works in place, and what a problem returns may be phi itself
        # or the weights of a module of its own.
        params = self.problem.init_params(outer, generator(fold(key, "params")))
        params = _copied(tree.check_named(params, f"{type(self.problem).__name__}.init_params"))
        state = _copied(self.problem.init_state(outer, params))
        buffers = _copied(self.problem.init_buffers(outer, params))
        shared = sorted(params.keys() & {*buffers, *self.frozen})
        if shared:
            raise ValueError(
                f"{type(self.problem).__name__}.init_params returns {shared[0]!r}, and so do its "
                f"buffers or frozen weights, which a loss would get in its place; each name is one "
                f"tensor."
            )
        loss = next(iter(params.values())).new_full((), torch.nan)
        moments = self.optimizer(outer, 0).init(params)
        return GradientState(params, buffers, state, moments, 0, loss)

    def first_of(
        self, outer: Tree, inner: GradientState, key: int
    ) -> tuple[InnerLoop, Tree, GradientState, int]:
        """Return the loop, phi, state and key of the first of the members: here there is one."""
        return self, outer, inner, key

    def total(self, theta: Tree) -> Tree:
        """Return the sum over tasks of what each has in the place of theta: here there is one."""
        return theta

    # Batches.

    def draw(self, inner: GradientState, key: int, k: int) -> Draw:
        """Return which batch inner step k of a run takes."""
        index = self.task_index
        return Draw(fold(key, k), self.outer_step, k, inner.step, "inner", key, task_index=index)

    def solve_draw(self, inner: GradientState, key: int, steps: int) -> Draw:
        """Return which batch the inner loss is taken on after the `steps` steps of a run."""
        at, index = fold(key, "implicit"), self.task_index
        return Draw(at, self.outer_step, steps, inner.step, "solve", key, task_index=index)

    def outer_draw(self, inner: GradientState, key: int, k: int | None = None) -> Draw:
        """Return which batch the outer loss is taken on after a run, or at its inner step k."""
        at, index = fold(key if k is None else fold(key, k), "outer"), self.task_index
        return Draw(at, self.outer_step, None, inner.step, "outer", key, "outer batch", index)

    def batch(self, outer: Tree, inner: GradientState, draw: Draw) -> Batch:
        """Return an inner batch, prepared; the module may change `inner.buffers` in place."""
        # A copy of the draw has a generator that nobody has drawn from: the same draw gives the
        # same batch however often it is asked for. Decisions have a stream to themselves, so that
        # they do not depend on how much the batch has drawn.
        batch = self.problem.inner_batch(draw.fresh())
        if not self.prepares_batches:
            return batch
        # Labels that a network with dropout decides: a step that is recomputed gets them again.
        with torch.no_grad(), replay(fold(draw.key, "decide")):
            return self.problem.prepare_batch(
                outer, self.tensors(inner), batch, draw.fresh("decide")
            )

    def outer_batch(self, draw: Draw) -> Batch:
        """Return an outer batch."""
        return self.problem.outer_batch(draw.fresh())

    # Losses.

    def tensors(self, inner: GradientState, frozen: Tree | None = None) -> InnerTensors:
        """Return the parameters, buffers and frozen weights as a loss gets them."""
        tensors = InnerTensors(inner.params)
        tensors.update(inner.buffers)
        tensors.update(self.frozen if frozen is None else frozen)
        tensors.params, tensors.state = inner.params, inner.state
        return tensors

    def apply(self, name: str, outer: Tree, inner: GradientState, batch: Batch) -> Any:
        """Return what a function (outer, inner, batch) of the problem says, by its name."""
        tensors = self.tensors(inner)
        value = getattr(self.problem, name)(outer, tensors, batch)
        # What a module assigns to a buffer, functional_call leaves in `tensors`.
        inner.buffers.update({k: tensors[k] for k in inner.buffers if tensors[k] is not None})
        return scalar_loss(value, name) if name in LOSSES else value

    def masks(self, draw: Draw, purpose: str) -> AbstractContextManager[object]:
        """Return a block whose dropout masks follow from a draw and what it is for."""
        return replay(fold(draw.key, purpose))

    def inner_value(
        self, outer: Tree, inner: GradientState, draw: Draw, batch: Batch = None
    ) -> Tensor:
        """Return g(phi, theta) on the batch and the dropout masks of `draw`.

        The module may change `inner.buffers` in place: pass `inner.at(params)` for an evaluation
        that leaves them alone. `batch` replaces the one that `draw` stands for.
        """
        if batch is None:
            batch = self.batch(outer, inner, draw)
        # Dropout masks follow from the draw: a finite difference and a rebuilt segment evaluate the
        # loss of one step more than once.
        with self.masks(draw, "noise"), statistics(inner.buffers, inner.state):
            loss: Tensor = self.apply("inner_loss", outer, inner, batch)
            return loss

    def outer_value(self, outer: Tree, inner: GradientState, draw: Draw) -> Tensor:
        """Return F(phi, theta) on the outer batch and masks of `draw`; buffers are left alone."""
        with self.masks(draw, "outer noise"), statistics(inner.buffers, inner.state):
            batch, copied = self.outer_batch(draw), inner.at(inner.params)
            loss: Tensor = self.apply("outer_loss", outer, copied, batch)
            return loss

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
        grads = torch.autograd.grad(tree.total(loss), list(params.values()), materialize_grads=True)
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
        grads = torch.autograd.grad(
            tree.total(loss), list(params.values()), create_graph=True, materialize_grads=True
        )
        mean = distributed.mean_on_graph(tree.like(params, grads))
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


def _copied(state: T) -> T:
    return tree.map_tensors(torch.clone, state)


def scalar_loss(loss: Tensor, name: str) -> Tensor:
    """Return a loss that is one number, or raise a `ValueError` that names the method."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"{name} must return a scalar tensor, such as the mean over the batch; got {shape}."
        )
    return loss


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
