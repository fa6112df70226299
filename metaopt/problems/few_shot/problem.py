"""Few-shot learning as two levels: a start for all tasks, and steps from it in each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from metaopt.engine.adaptation import adapted, distance
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.few_shot.report import AdaptationReport
from metaopt.problems.few_shot.tasks import Sinusoids, Task, Tasks


class FewShot(GradientProblem):
    """g = loss on the support set of a task, F = loss on its query set; theta_0 = phi.

    g(phi, theta) = l(theta; support) + (proximal / 2) |theta - phi|^2, F = l(theta; query), for a
    network of linear layers with ReLU between them. An outer step has a task for each member of the
    estimator's meta-batch, the same examples in all of its inner steps.

    Metrics: `error_k` (or what the tasks call it), the mean over test tasks after k steps of the
    inner optimizer on g, for each k of `test_steps`.

    Args:
        data: the distribution of tasks; see `metaopt.problems.few_shot.tasks`.
        inner_optimizer: steps theta.
        widths: sizes of the hidden layers.
        adapts: whether all layers are in theta, or the last one alone, while the others are phi's
            and learn from F (ANIL).
        proximal: lambda, >= 0; what iMAML's `estimator=implicit` needs to be above 0.
        test_steps: numbers of steps on test tasks, >= 1, increasing.

    Raises:
        ValueError: an argument outside its range.

    Cost: of metrics, `max(test_steps)` gradients on all test tasks at once.

    Reference: Finn et al., MAML, ICML 2017.

    Example:
        >>> from metaopt import Descent, Unroll, run
        >>> from metaopt.problems.few_shot import FewShot, Sinusoids
        >>> problem = FewShot(Sinusoids(test_tasks=20))
        >>> result = run(problem, Unroll(tasks=5), Descent("adam", lr=1e-3), 2, progress=False)
        >>> sorted(result.metrics)[:3]
        ['eval/error_1', 'eval/error_10', 'eval/error_5']
    """

    warm_start = False
    batched_losses = True

    def __init__(
        self,
        data: Tasks | None = None,
        inner_optimizer: InnerOptimizer | None = None,
        widths: Sequence[int] = (40, 40),
        adapts: Literal["all", "head"] = "all",
        proximal: float = 0.0,
        test_steps: Sequence[int] = (1, 5, 10),
    ) -> None:
        self.data = data or Sinusoids()
        self.inner_optimizer: InnerOptimizer = inner_optimizer or SGD(lr=0.01)
        self.widths, self.adapts, self.proximal = tuple(widths), adapts, proximal
        self.test_steps = tuple(test_steps)
        check_choices(self, adapts=("all", "head"))
        check_ranges(self, "proximal >= 0")
        _check_integers("widths", self.widths)
        _check_integers("test_steps", self.test_steps)
        if not self.test_steps or [*self.test_steps] != sorted({*self.test_steps}):
            raise ValueError(
                f"FewShot needs test_steps to increase, such as [1, 5, 10]; got {test_steps}."
            )
        sizes = itertools.pairwise((self.data.inputs, *self.widths, self.data.outputs))
        self.layers = {f"layer{i}": size for i, size in enumerate(sizes, 1)}
        if isinstance(self.data, Sinusoids):
            self.report = AdaptationReport(self.data, self.curves)

    def init_outer(self, generator: Generator) -> Tree:
        """Return weights (in, out) and biases, drawn as `torch.nn.Linear` does."""
        phi = {}
        for layer, (fan_in, fan_out) in self.layers.items():
            for name, shape in (("weight", (fan_in, fan_out)), ("bias", (fan_out,))):
                uniform = torch.rand(shape, generator=generator)
                phi[f"{layer}.{name}"] = (2 * uniform - 1) / fan_in**0.5
        return phi

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return what is adapted, a copy of phi's."""
        head = f"layer{len(self.layers)}."
        return {
            name: value.clone()
            for name, value in outer.items()
            if self.adapts == "all" or name.startswith(head)
        }

    def inner_batch(self, draw: Draw) -> Task:
        """Return the task, the same for all batches of an outer step."""
        return self.data.draw(draw.task)

    outer_batch = inner_batch

    def inner_loss(self, outer: Tree, inner: Tree, batch: Task) -> Tensor:
        """Return g of each task."""
        x, y = self.data.support(batch)
        loss = self.data.losses(self.outputs(outer, inner, x), y)
        if not self.proximal:
            return loss
        return loss + self.proximal / 2 * distance(outer, inner, loss.ndim)

    def outer_loss(self, outer: Tree, inner: Tree, batch: Task) -> Tensor:
        """Return F of each task."""
        x, y = self.data.query(batch)
        return self.data.losses(self.outputs(outer, inner, x), y)

    def outputs(self, outer: Tree, inner: Tree, x: Tensor) -> Tensor:
        """Return the network's outputs (..., n, outputs) at inputs (..., n, inputs)."""
        weights = {**outer, **inner}
        for i, layer in enumerate(self.layers):
            x = x.relu() if i else x
            x = x @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"].unsqueeze(-2)
        return x

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return the mean scores on the test tasks after each number of steps."""
        test = self.data.test.to(next(iter(outer.values())).device)
        x, y = self.data.test_query(test)
        states = self.adapted(outer, test, max(self.test_steps))
        return {
            f"{self.data.score}_{k}": self.data.scores(self.outputs(outer, states[k], x), y).mean()
            for k in self.test_steps
        }

    def adapted(self, outer: Tree, tasks: Task, steps: int) -> list[Tree]:
        """Return theta of each of several tasks before and after each step, without a graph."""
        start = self.init_params(outer, Generator())
        return adapted(
            self.inner_loss, outer, tasks, len(tasks), steps, self.inner_optimizer, start
        )

    def curves(self, outer: Tree, task: Tensor, x: Tensor) -> dict[int, Tensor]:
        """Return outputs (n,) at inputs (n,) of one task, before and after `test_steps` steps."""
        states = self.adapted(outer, task.unsqueeze(0), max(self.test_steps))
        return {
            k: self.outputs(outer, states[k], x[:, None]).flatten().detach()
            for k in (0, *self.test_steps)
        }


def _check_integers(name: str, values: Sequence[int]) -> None:
    if any(type(value) is not int or value < 1 for value in values):
        raise ValueError(f"FewShot needs {name} to be integers >= 1; got {list(values)}.")
