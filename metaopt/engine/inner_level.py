"""The inner level of a problem at one state: its optimizer, its start, its batches, its losses."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.batch_parts import part
from metaopt.engine.buffers import statistics
from metaopt.engine.gradient_problem import Batch, GradientProblem, GradientState, InnerTensors
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator, replay
from metaopt.engine.recomputation import watched_checkpoints

T = TypeVar("T")
LOSSES = ("inner_loss", "outer_loss")


class InnerLevel:
    """The inner level of a gradient problem; `metaopt.engine.inner_loop.InnerLoop` steps it.

    `key` is that of one outer step's inner run: its batches and dropout masks follow from it, from
    the outer step and from the number of the inner step.

    Args:
        problem: what is trained on what.

    Attributes:
        outer_step: outer steps taken so far; the engine sets it.
        task_index: which task of a meta-batch runs; 0 where there is one.
        updates_state: whether inner steps change the problem's own state.
        prepares_batches: whether the problem adds to its inner batches.
        has_buffers: whether the problem's module has buffers.
    """

    def __init__(self, problem: GradientProblem) -> None:
        self.problem = problem
        self.outer_step = self.task_index = 0
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

    def initial(self, outer: Tree, key: int) -> GradientState:
        """Return a new state; what is made from `outer` hangs on its graph."""
        return self.initial_from(outer, generator(fold(key, "params")))

    def initial_from(self, outer: Tree, draw: torch.Generator) -> GradientState:
        """Return the same, drawn from a generator."""
        # Copied, on the graph: `step_` works in place, and what a problem returns may be phi itself
        # or the weights of a module of its own.
        params = self.problem.init_params(outer, draw)
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

    # Batches.

    def draw(self, inner: GradientState, key: int, k: int) -> Draw:
        """Return which batch inner step k of a run takes."""
        index = self.task_index
        return Draw(fold(key, k), self.outer_step, k, inner.step, "inner", key, task_index=index)

    def solve_draw(
        self, inner: GradientState, key: int, steps: int, number: int | None = None
    ) -> Draw:
        """Return which batch the inner loss is taken on after the `steps` steps of a run.

        `number` tells the batches of a solve apart that takes several.
        """
        at = fold(key, "implicit") if number is None else fold(key, "implicit", number)
        index = self.task_index
        return Draw(at, self.outer_step, steps, inner.step, "solve", key, task_index=index)

    def outer_draw(self, inner: GradientState, key: int, k: int | None = None) -> Draw:
        """Return which batch the outer loss is taken on after a run, or at its inner step k."""
        at, index = fold(key if k is None else fold(key, k), "outer"), self.task_index
        return Draw(at, self.outer_step, k, inner.step, "outer", key, "outer batch", index)

    def blocks(self, draw: Draw) -> Tensor:
        """Return which block of a `Finite` problem's data a draw takes, a scalar."""
        problem: Any = self.problem
        return torch.tensor(problem.block(draw))

    def batch(self, outer: Tree, inner: GradientState, draw: Draw) -> Batch:
        """Return an inner batch, prepared; the module may change `inner.buffers` in place.

        Where ranks split batches, the part of this one.
        """
        return self._part(self.whole_batch(outer, inner, draw))

    def whole_batch(self, outer: Tree, inner: GradientState, draw: Draw) -> Batch:
        """Return the prepared inner batch that ranks split.

        What is decided is decided on all of it, so that sampled decisions are those of one process.
        """
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
        """Return an outer batch; where ranks split batches, the part of this one."""
        return self._part(self.whole_outer_batch(draw))

    def whole_outer_batch(self, draw: Draw) -> Batch:
        """Return the outer batch that ranks split."""
        return self.problem.outer_batch(draw.fresh())

    def _part(self, batch: Batch) -> Batch:
        return part(batch, type(self.problem).__name__)

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
        with watched_checkpoints(type(self.problem).__name__, name):
            value = getattr(self.problem, name)(outer, tensors, batch)
        # What a module assigns to a buffer, functional_call leaves in `tensors`.
        if inner.buffers:
            inner.buffers.update({k: tensors[k] for k in inner.buffers if tensors[k] is not None})
        return scalar_loss(value, name) if name in LOSSES else value

    def masks(self, draw: Draw, purpose: str) -> AbstractContextManager[object]:
        """Return a block whose dropout masks follow from a draw, what it is for, and the rank."""
        # The same masks on all ranks would drop the same units of their examples.
        place = distributed.rank()
        return replay(fold(draw.key, purpose, *([place] if place else [])))

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
