"""The mean hypergradient over a meta-batch of tasks, as MAML takes it."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.meta_batch import MetaBatch
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.stacked import RaggedBatchesError
from metaopt.estimators.inner_run import InnerRun, Result


class TaskAverage(InnerRun):
    """An estimator that takes the mean over B tasks, each with an inner run of its own.

    Task i is the inner run under a key of its own: its theta_0, its batches (`draw.task`,
    `draw.task_index`) and its dropout masks follow from it, and those of task 0 are what they are
    for one task. The inner state that is left, which a problem's metrics get, is that of task 0.

    Args:
        inner_steps: number K of inner steps.
        tasks: number B of tasks, >= 1.
    """

    stacks = True

    def __init__(self, inner_steps: int = 1, tasks: int = 1) -> None:
        super().__init__(inner_steps)
        self.tasks = tasks
        check_ranges(self, "tasks >= 1")

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        super().check(loop)
        if self.tasks > 1 and loop.problem.warm_start:
            raise ValueError(
                f"{type(self).__name__}(tasks={self.tasks}) starts each task from init_params, and "
                f"{type(loop.problem).__name__} has warm_start=True. Set it to False, or tasks=1."
            )

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state of the first task, and the mean over tasks of what they say."""
        if self.tasks == 1:
            return self.one(loop, outer, inner, key)
        if self.tasks not in loop.meta_batches:
            loop.meta_batches[self.tasks] = MetaBatch(loop, self.tasks)
        batch = loop.meta_batches[self.tasks]
        batch.outer_step, batch.folder = loop.outer_step, loop.folder
        if batch.runs:
            try:
                return self.together(batch, outer, key)
            except RaggedBatchesError:
                pass  # this step's batches alone
        results = []
        for i, (one, own) in enumerate(batch.each_task(key)):
            start = inner if i == 0 else one.start(outer, None, own)
            results.append(self.one(one, outer, start, own))
        return results[0][0], mean_feedback([feedback for _, feedback in results])

    @abstractmethod
    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after one task's run, and what it says about phi."""

    def together(self, batch: MetaBatch, outer: Tree, key: int) -> Result:
        """Return the same as the loop over tasks does, from one run of all tasks."""
        return self.of_first_task(
            batch, *self.one(batch, outer, batch.start(outer, None, key), key)
        )

    def of_first_task(self, batch: MetaBatch, inner: GradientState, feedback: Feedback) -> Result:
        """Return the first task's state, and the feedback with the costs of all tasks."""
        cost = {unit: self.tasks * amount for unit, amount in feedback.cost.items()}
        # Copied: a part would keep all tasks in memory, and in a checkpoint.
        return tree.clone(batch.task(inner, 0)), dataclasses.replace(feedback, cost=cost)


def mean_feedback(feedbacks: Sequence[Feedback]) -> Feedback:
    """Return the mean values, hypergradients and metrics, and the summed costs."""
    share = 1 / len(feedbacks)

    def mean(values: Sequence[Tensor | float]) -> Tensor:
        return torch.stack([torch.as_tensor(v) for v in values]).mean(0)

    grad: Tree | None = None
    for grads in (f.grad for f in feedbacks if f.grad is not None):
        grad = tree.scale(grads, share) if grad is None else tree.add(grad, grads, share)
    metrics = {k: mean([f.metrics[k] for f in feedbacks]) for k in feedbacks[0].metrics}
    cost: dict[str, float] = {}
    for each in (f.cost for f in feedbacks):
        for unit, amount in each.items():
            cost[unit] = cost.get(unit, 0) + amount
    return Feedback(mean([f.value for f in feedbacks]), grad, metrics=metrics, cost=cost)
