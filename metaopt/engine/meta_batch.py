"""A meta-batch: the inner runs of B tasks as one.

MAML's outer loss is a mean over tasks, each with its own batches, its own state and its own random
numbers, and all with theta_0 made of the same phi.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator, replay
from metaopt.engine.stacked import Stacked, agree, compared, moved, stack


def task_key(key: int, index: int) -> int:
    """Return the key of the inner run of a task; that of the first is the outer step's own."""
    return fold(key, "task", index) if index else key


class MetaBatch(Stacked):
    """The inner level of B tasks; task i is the inner run under `task_key(key, i)`.

    g is the sum over tasks, so that each one trains as it would alone, and F their mean. A
    derivative with respect to phi is then the mean of the tasks' own to round-off.

    Args:
        loop: the inner level of one task.
        tasks: number B of tasks.

    Raises:
        RaggedBatchesError: from its steps, where the tasks' batches differ in form.
    """

    outer_axis = None

    def __init__(self, loop: InnerLoop, tasks: int) -> None:
        super().__init__(loop.problem)
        self.loop = self.first = loop
        self.tasks = tasks
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

    def each(self, key: int) -> Iterator[tuple[InnerLoop, int]]:
        """Yield the loop of one task, set to each of them in turn, and the task's key."""
        try:
            for index in range(self.tasks):
                self.loop.outer_step, self.loop.task_index = self.outer_step, index
                yield self.loop, task_key(key, index)
        finally:
            self.loop.task_index = 0

    def initial(self, outer: Tree, key: int) -> GradientState:
        """Return the first states of all tasks, on the graph of `outer`."""
        start = super().initial(outer, key)
        return start._replace(loss=start.loss[0])

    def inner_value(
        self, outer: Tree, inner: GradientState, draw: Draw, batch: Batch = None
    ) -> Tensor:
        """Return the sum over tasks of g(phi, theta_i), each on its own batch."""
        return super().inner_value(outer, inner, draw, batch).sum()

    def outer_value(self, outer: Tree, inner: GradientState, draw: Draw) -> Tensor:
        """Return the mean over tasks of F(phi, theta_i); buffers are left alone."""
        return super().outer_value(outer, inner, draw).mean()

    def total(self, theta: Tree) -> Tree:
        """Return the sum over tasks."""
        return {k: v.sum(0) for k, v in theta.items()}

    @cached_property
    def runs(self) -> bool:
        """Whether the tasks can be stepped together, with the numbers of one after the other.

        They cannot where a loss draws random numbers, reads a number off a tensor, or has batches
        of several forms. Tried on the first batches, for a step and eight gradients of each task.
        """
        with replay(0):
            phi = self.problem.init_outer(generator(0))
            start = self.start(phi, None, 0)
            try:
                with torch.enable_grad(), twice_differentiable():
                    self.step(phi, self.leaves(start), self.draw(start, 0, 0))
                    points = [(phi, start), (moved(phi), start.at(moved(start.params)))]
                    together = compared(self, points, 0, self.tasks)
            except Exception:  # a mistake of the problem's own shows again in a loop over tasks
                return False
            with torch.enable_grad():
                alone = [
                    compared(loop, [(p, self.member(at, i)) for p, at in points], key)
                    for i, (loop, key) in enumerate(self.each(0))
                ]
        pairs = zip(together, stack(alone), strict=True)
        return all(agree(a, self._summed(a, b)) for a, b in pairs if b)

    def _summed(self, together: Tree, alone: Tree) -> Tree:
        """Return what each task has, summed where the tasks together have one: losses and phi."""
        shared = any(alone[k].ndim > v.ndim for k, v in together.items())
        return self.total(alone) if shared else alone
