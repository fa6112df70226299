"""A meta-batch: the inner runs of B tasks as one.

MAML's outer loss is a mean over tasks, each with its own batches, its own state and its own random
numbers, and all with theta_0 made of the same phi.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metaopt.engine import tree
from metaopt.engine.gradient_problem import Batch, GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import (
    Draw,
    fold,
    generator,
    generator_states,
    replay,
    set_generator_states,
)
from metaopt.engine.scheduled import Scheduled
from metaopt.engine.stacked import (
    BatchedLossError,
    Stacked,
    agree,
    compared,
    moved,
    pick_state,
    stack,
)

T = TypeVar("T")


def task_key(key: int, index: int) -> int:
    """Return the key of the inner run of a task; that of the first is the outer step's own."""
    return fold(key, "task", index) if index else key


class MetaBatch(Stacked):
    """The inner level of B tasks; task i is the inner run under `task_key(key, i)`.

    g is the sum over tasks, so that each one trains as it would alone, and F their mean. A
    derivative with respect to phi is then the mean of the tasks' own to round-off. Where the loop
    has replicates, each of them has tasks of its own: the axis of tasks is behind theirs.

    Args:
        loop: the inner level of one task.
        tasks: number B of tasks.

    Raises:
        RaggedBatchesError: from its steps, where the tasks' batches differ in form.
    """

    def __init__(self, loop: InnerLoop, tasks: int) -> None:
        super().__init__(loop.problem)
        self.loop, self.tasks = loop, tasks
        self.first = loop.first if isinstance(loop, Stacked) else loop
        self.shape, self.per_member = (*loop.shape, tasks), loop.per_member
        self.progress = loop.progress

    @property
    def replicates(self) -> int:
        """The number of terms that g is a sum of."""
        return self.tasks * self.loop.replicates

    @property
    def frozen(self) -> Tree:
        """The weights that nobody trains."""
        return self.loop.frozen

    @property
    def carried_buffers(self) -> frozenset[str]:
        """Names of the buffers through which a derivative leads to a loss one step on."""
        return self.loop.carried_buffers

    def each_task(self, key: int) -> Iterator[tuple[InnerLoop, int]]:
        """Yield the loop of one task, set to each of them in turn, and the task's key."""
        self.loop.outer_step = self.outer_step
        try:
            for index in range(self.tasks):
                self.loop.task_index = index
                yield self.loop, task_key(key, index)
        finally:
            self.loop.task_index = 0

    def each(self, key: int) -> Iterator[tuple[InnerLoop, int]]:
        """Yield each member's own loop and its key: of each replicate, one task after the other."""
        self.loop.outer_step = self.outer_step
        for loop, own in self.loop.each(key):
            try:
                for index in range(self.tasks):
                    loop.task_index = index
                    yield loop, task_key(own, index)
            finally:
                loop.task_index = 0

    def task(self, inner: GradientState, index: int) -> GradientState:
        """Return the state of one task, as its loop has it; memory is shared."""
        return pick_state(inner, *[slice(None)] * len(self.loop.shape), index)

    def member(self, inner: GradientState, index: int) -> GradientState:
        """Return the state of one member; memory is shared."""
        replicate, task = divmod(index, self.tasks)
        return pick_state(inner, *[replicate] * len(self.loop.shape), task)

    def outer_of(self, outer: Tree, index: int) -> Tree:
        """Return the outer variable of one member; memory is shared."""
        return self.loop.outer_of(outer, index // self.tasks)

    def gathered(self, states: Sequence[T]) -> T:
        """Return one tree of the members' trees of one form."""
        return tree.map_tensors(lambda t: t.unflatten(0, self.shape), stack(states))

    def mapped(
        self, function: Callable[..., T], shared: Sequence[Tensor], own: Sequence[Tensor]
    ) -> T:
        """Return function(*shared, *own) of each task, with the outer variable of all of them."""
        if own:
            function = vmap(function, in_dims=(*[None] * len(shared), *[0] * len(own)))
        return self.loop.mapped(function, shared, own)

    def initial_outer(self, key: int) -> Tree:
        """Return the first outer variable."""
        return self.loop.initial_outer(key)

    def problem_with(self, per_member: Mapping[str, Any]) -> GradientProblem:
        """Return the problem of a member, given the member's part of `self.per_member`."""
        return self.loop.problem_with(per_member)

    def broadcast(self, shared: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return tensors of replicates with an axis of one task; others broadcast as they are."""
        axis = len(self.loop.shape)
        return [t.unsqueeze(axis) for t in self.loop.broadcast(shared)] if axis else shared

    @tree.replicated(False)
    def initial(self, outer: Tree, key: int) -> GradientState:
        """Return the first states of all tasks, on the graph of `outer`."""
        # One by one they take longer than the steps of a small network.
        start = self._one_start(outer, key) or super().initial(outer, key)
        return start._replace(loss=start.loss[..., 0])

    def _one_start(self, outer: Tree, key: int) -> GradientState | None:
        """Return the first state of one task for all of them, where nothing is drawn for it."""
        starts, before = [], generator_states()
        for i, (loop, own) in enumerate(self.loop.each(key)):
            seed = fold(own, "params")
            draw = generator(seed)
            starts.append(loop.initial_from(self.loop.outer_of(outer, i), draw))
            if not torch.equal(draw.get_state(), generator(seed).get_state()):
                return None
        pairs = zip(tree.tensors(generator_states()), tree.tensors(before), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            set_generator_states(before)
            return None
        axis = len(self.loop.shape)
        size = (*self.loop.shape, self.tasks)
        one = stack(starts) if axis else starts[0]
        return tree.map_tensors(
            lambda t: t.unsqueeze(axis).expand(*size, *t.shape[axis:]).clone(), one
        )

    def optimizer(self, outer: Tree, step: int) -> InnerOptimizer:
        """Return how each task is stepped."""
        optimizer = self.problem.inner_optimizer
        if isinstance(optimizer, Scheduled) and optimizer.fixed and optimizer.clip_norm is None:
            return optimizer  # it steps each entry by itself
        return super().optimizer(outer, step)

    def inner_value(
        self, outer: Tree, inner: GradientState, draw: Draw, batch: Batch = None
    ) -> Tensor:
        """Return the sum over tasks of g(phi, theta_i), each on its own batch."""
        return super().inner_value(outer, inner, draw, batch).sum(-1)

    def outer_value(self, outer: Tree, inner: GradientState, draw: Draw) -> Tensor:
        """Return the mean over tasks of F(phi, theta_i); buffers are left alone."""
        return super().outer_value(outer, inner, draw).mean(-1)

    def total(self, theta: Tree) -> Tree:
        """Return the sum over tasks."""
        return {k: v.sum(len(self.loop.shape)) for k, v in theta.items()}

    @cached_property
    def runs(self) -> bool:
        """Whether the tasks can be stepped together, with the numbers of one after the other.

        They cannot where a loss draws random numbers, reads a number off a tensor, or has batches
        of several forms. Tried on the first batches, for a step and eight gradients of each task.
        """
        with replay(0):
            phi = self.loop.initial_outer(0)
            start = self.start(phi, None, 0)
            points = [(phi, start), (moved(phi), start.at(moved(start.params)))]
            try:
                with torch.enable_grad(), twice_differentiable():
                    self.step(phi, self.leaves(start), self.draw(start, 0, 0))
                    together = compared(self, points, 0, self.tasks)
            except BatchedLossError:
                raise
            except Exception:  # a mistake of the problem's own shows again in a loop over tasks
                return False
            with torch.enable_grad(), tree.replicated(False):
                alone = [
                    compared(
                        loop, [(self.outer_of(p, i), self.member(at, i)) for p, at in points], k
                    )
                    for i, (loop, k) in enumerate(self.each(0))
                ]
        pairs = zip(together, self.gathered(alone), strict=True)
        same = all(agree(a, self._summed(a, b)) for a, b in pairs if b)
        if self.problem.batched_losses and not same:
            raise BatchedLossError(
                f"{type(self.problem).__name__} has other losses for {self.tasks} tasks together "
                f"than for each alone. Take means over the axes of a task alone, or set "
                f"batched_losses=False."
            )
        return same

    def _summed(self, together: Tree, alone: Tree) -> Tree:
        """Return what each task has, summed where the tasks together have one: losses and phi."""
        shared = any(alone[k].ndim > v.ndim for k, v in together.items())
        return self.total(alone) if shared else alone
