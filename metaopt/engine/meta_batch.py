"""A meta-batch: the inner runs of B tasks as one run, whose tensors have an axis of tasks in front.

MAML's outer loss is a mean over tasks, each with its own batches, its own state and its own random
numbers, and all with theta_0 made of the same phi. `MetaBatch` is an `InnerLoop` whose steps are
those of all tasks, by `torch.func.vmap`, so that an estimator that knows nothing of tasks
differentiates them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metaopt.engine import tree
from metaopt.engine.buffers import statistics
from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.inner_loop import InnerLoop, scalar_loss
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator, replay
from metaopt.engine.scheduled import State

T = TypeVar("T")


class RaggedBatchesError(ValueError):
    """The batches of a meta-batch have not the same form, so that they cannot be stacked."""


@dataclass(frozen=True)
class Draws(Draw):
    """Which batches the tasks of a meta-batch draw.

    Args:
        each: of each task.
    """

    each: tuple[Draw, ...] = ()


def task_key(key: int, index: int) -> int:
    """Return the key of the inner run of a task; that of the first is the outer step's own."""
    return fold(key, "task", index) if index else key


class MetaBatch(InnerLoop):
    """The inner level of B tasks; task i is the inner run under `task_key(key, i)`.

    g is the sum over tasks, so that each one trains as it would alone, and F their mean. A
    derivative with respect to phi is then the mean of the tasks' own to round-off.

    Args:
        loop: the inner level of one task.
        tasks: number B of tasks.

    Raises:
        RaggedBatchesError: from its steps, where the tasks' batches differ in form.
    """

    def __init__(self, loop: InnerLoop, tasks: int) -> None:
        super().__init__(loop.problem)
        self.loop, self.tasks = loop, tasks

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

    def indices(self) -> Iterator[int]:
        """Yield the index of each task, with the task's own loop set to it."""
        try:
            for index in range(self.tasks):
                self.loop.outer_step, self.loop.task_index = self.outer_step, index
                yield index
        finally:
            self.loop.task_index = 0

    def initial(self, outer: Tree, key: int) -> GradientState:
        """Return the first states of all tasks, on the graph of `outer`."""
        states = [self.loop.initial(outer, task_key(key, i)) for i in self.indices()]
        return _stack(states)._replace(loss=states[0].loss)

    # Batches.

    def draw(self, inner: GradientState, key: int, k: int) -> Draw:
        """Return which batches inner step k takes."""
        return self._draws(lambda key: self.loop.draw(inner, key, k), key)

    def solve_draw(self, inner: GradientState, key: int, steps: int) -> Draw:
        """Return which batches the inner loss is taken on after the `steps` steps of a run."""
        return self._draws(lambda key: self.loop.solve_draw(inner, key, steps), key)

    def outer_draw(self, inner: GradientState, key: int, k: int | None = None) -> Draw:
        """Return which batches the outer loss is taken on."""
        return self._draws(lambda key: self.loop.outer_draw(inner, key, k), key)

    def _draws(self, of: Callable[[int], Draw], key: int) -> Draw:
        return Draws(key, each=tuple(of(task_key(key, i)) for i in self.indices()))

    def batch(self, outer: Tree, inner: GradientState, draw: Draw) -> Batch:
        """Return the prepared inner batch of each task."""
        if not self.prepares_batches:
            return [self.loop.batch(outer, inner, d) for d in _each(draw)]
        states = [self.task(inner, i) for i in range(self.tasks)]  # views: buffers change in place
        return [self.loop.batch(outer, *of) for of in zip(states, _each(draw), strict=True)]

    def outer_batch(self, draw: Draw) -> Batch:
        """Return the outer batch of each task."""
        return [self.loop.outer_batch(d) for d in _each(draw)]

    # Losses and steps.

    def check_modules(self, outer: Tree, inner: GradientState) -> None:
        """Raise a `ValueError` if a step on the problem's modules would be wrong; tried once."""
        self.loop.check_modules(outer, self.task(inner, 0))

    def inner_value(
        self, outer: Tree, inner: GradientState, draw: Draw, batch: Batch = None
    ) -> Tensor:
        """Return the sum over tasks of g(phi, theta_i), each on its own batch."""
        batch = self.batch(outer, inner, draw) if batch is None else batch
        return self._losses("inner_loss", outer, inner, batch).sum()

    def outer_value(self, outer: Tree, inner: GradientState, draw: Draw) -> Tensor:
        """Return the mean over tasks of F(phi, theta_i); buffers are left alone."""
        batch, copied = self.outer_batch(draw), inner.at(inner.params)
        return self._losses("outer_loss", outer, copied, batch).mean()

    def _losses(
        self, name: str, outer: Tree, inner: GradientState, batches: Sequence[Batch]
    ) -> Tensor:
        """Return a loss of each task, (B,)."""
        loss: Callable[..., Tensor] = getattr(self.problem, name)
        stacked, rebuild = _stacked(batches)

        def one(params: Tree, buffers: Tree, state: Any, *parts: Tensor) -> Tensor:
            at = inner._replace(params=params, buffers=buffers, state=state)
            value = loss(outer, self.tensors(at), rebuild(parts))
            return scalar_loss(value, name).reshape(())

        # Random numbers would be others than those of a task alone: vmap refuses them.
        with statistics(inner.buffers, inner.state):
            result: Tensor = vmap(one)(inner.params, inner.buffers, inner.state, *stacked)
        return result

    def stepped_params(self, outer: Tree, inner: GradientState, grads: Tree) -> GradientState:
        """Return the state with the parameters and moments of each task stepped; new tensors."""
        optimizer = self.optimizer(outer, inner.step)

        # By task, since a gradient is clipped by its own task's norm.
        def one(params: Tree, grads: Tree, moments: State) -> tuple[Tree, State]:
            return optimizer.update(params, grads, moments, inner.step)

        params, moments = vmap(one)(inner.params, grads, inner.optimizer)
        return inner._replace(params=params, optimizer=moments)

    def step_params_(self, outer: Tree, inner: GradientState, grads: Tree) -> GradientState:
        """Return the same; nothing is gained in place here."""
        return self.stepped_params(outer, inner, grads)

    def updated_state(self, outer: Tree, inner: GradientState, step: int) -> dict[str, Any]:
        """Return the problem's own state of each task after `step` steps."""
        if not self.updates_state:
            return inner.state

        def one(params: Tree, buffers: Tree, state: Any) -> Any:
            at = inner._replace(params=params, buffers=buffers, state=state)
            return self.loop.updated_state(outer, at, step)

        result: dict[str, Any] = vmap(one)(inner.params, inner.buffers, inner.state)
        return result

    def total(self, theta: Tree) -> Tree:
        """Return the sum over tasks."""
        return {k: v.sum(0) for k, v in theta.items()}

    def task(self, inner: GradientState, index: int) -> GradientState:
        """Return the state of one task; memory is shared."""
        return inner._replace(
            params=_pick(inner.params, index),
            buffers=_pick(inner.buffers, index),
            state=_pick(inner.state, index),
            optimizer=_pick(inner.optimizer, index),
        )

    @cached_property
    def runs(self) -> bool:
        """Whether the tasks can be stepped together, with the numbers of one after the other.

        They cannot where a loss draws random numbers, reads a number off a tensor, or has batches
        of several forms. Found out on the first batches, which costs a step of each task.
        """
        with replay(0):
            phi = self.problem.init_outer(generator(0))
            start = self.start(phi, None, 0)
            try:
                with torch.enable_grad(), twice_differentiable():
                    self.step(phi, self.leaves(start), self.draw(start, 0, 0))
                    together = _slopes(self, phi, start, 0, self.tasks)
            except Exception:  # a mistake of the problem's own shows again in a loop over tasks
                return False
            with torch.enable_grad():
                alone = [
                    _slopes(self.loop, phi, self.task(start, i), task_key(0, i), 1)
                    for i in self.indices()
                ]
        pairs = zip(together, _stack(alone), strict=True)
        return all(_agree(a, b) for a, b in pairs if b)


def _agree(a: Tree, b: Tree) -> bool:
    """Return whether two trees are one but for round-off."""
    # By their norm: single gradients may be 0 but for round-off. A sum over tasks and examples in
    # another order stays far below the root of the precision; another value does not.
    size = tree.norm(b)
    return bool(tree.norm(tree.add(a, b, -1.0)) <= torch.finfo(size.dtype).eps ** 0.5 * size)


def _slopes(loop: InnerLoop, phi: Tree, inner: GradientState, key: int, tasks: int) -> list[Tree]:
    """Return the gradients of g and of F in theta, and the buffers after an evaluation of g."""
    at = inner.at(tree.leaves(inner.params))
    g = loop.inner_value(phi, at, loop.draw(inner, key, 0))
    f = loop.outer_value(phi, at, loop.outer_draw(inner, key)) * tasks
    buffers = {k: v.double() for k, v in at.buffers.items()}
    return [tree.gradient(g, at.params)[0], tree.gradient(f, at.params)[0], buffers]


def _stack(states: Sequence[T]) -> T:
    """Return one tree whose tensors are those of trees of one form, stacked."""
    columns = zip(*map(tree.tensors, states), strict=True)
    stacked = (torch.stack(column) for column in columns)
    return tree.map_tensors(lambda _: next(stacked), states[0])


def _pick(state: T, index: int) -> T:
    return tree.map_tensors(lambda t: t[index], state)


def _stacked(batches: Sequence[Batch]) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
    """Return the stacked tensors of batches, and what makes a batch of the tensors of one task."""
    forms = [tree.map_tensors(_form, batch) for batch in batches]
    try:
        alike = all(form == forms[0] for form in forms)
    except (ValueError, RuntimeError):  # of arrays and objects with tensors inside
        alike = False
    if not alike:
        raise RaggedBatchesError("the tasks of a meta-batch have batches of several forms.")

    def rebuild(parts: Sequence[Tensor]) -> Batch:
        remaining = iter(parts)
        return tree.map_tensors(lambda _: next(remaining), batches[0])

    return list(tree.tensors(_stack(batches))), rebuild


def _form(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype


def _each(draw: Draw) -> tuple[Draw, ...]:
    """Return the draws of the tasks."""
    if not isinstance(draw, Draws):
        raise TypeError("a meta-batch takes the draws that its own `draw` returns.")
    return draw.each
