"""Several inner runs as one, whose tensors have an axis of them in front.

`Stacked` is an `InnerLoop` whose losses are evaluated for all members by `torch.func.vmap`, or by
the problem itself (`GradientProblem.batched_losses`): an estimator that knows nothing of members
differentiates them together. The tasks of a meta-batch
(`metaopt.engine.meta_batch`) share phi; the replicates of a run with several seeds
(`metaopt.engine.replicates`) have each its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.draws import Draws, each_draw
from metaopt.engine.gradient_problem import Batch, GradientProblem, GradientState
from metaopt.engine.hyperparameters import Number
from metaopt.engine.inner_level import LOSSES, scalar_loss
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.recomputation import watched_checkpoints
from metaopt.engine.remat_graph import hidden
from metaopt.engine.scheduled import State, overwrite

T = TypeVar("T")


class RaggedBatchesError(ValueError):
    """The members' batches have not the same form, so that they cannot be stacked."""


class BatchedLossError(ValueError):
    """A loss that is said to return the loss of each member does not."""


class Stacked(InnerLoop):
    """The inner level of several members.

    Raises:
        RaggedBatchesError: from its steps, where the members' batches differ in form.

    Attributes:
        first: the loop of the first member.
    """

    first: InnerLoop

    def __init__(self, problem: GradientProblem) -> None:
        super().__init__(problem)
        self._stacks: dict[str, _Stack] = {}

    @abstractmethod
    def each(self, key: int) -> Iterator[tuple[InnerLoop, int]]:
        """Yield each member's own loop, at the present outer step and task, and its key."""

    @abstractmethod
    def member(self, inner: GradientState, index: int) -> GradientState:
        """Return the state of one member, of all in the order of `each`; memory is shared."""

    def gathered(self, states: Sequence[T]) -> T:
        """Return one tree of the members' trees of one form.

        Raises:
            ValueError: they are of several forms.
        """
        return stack(states)

    def first_of(
        self, outer: Tree, inner: GradientState, key: int
    ) -> tuple[InnerLoop, Tree, GradientState, int]:
        """Return the loop, phi, state and key of the first member; memory is shared."""
        loop, own = next(iter(self.each(key)))
        return loop, self.outer_of(outer, 0), self.member(inner, 0), own

    @tree.replicated(False)
    def initial(self, outer: Tree, key: int) -> GradientState:
        """Return the first states of all members, on the graph of `outer`."""
        pairs = enumerate(self.each(key))
        return self.gathered([loop.initial(self.outer_of(outer, i), k) for i, (loop, k) in pairs])

    # Batches.

    def draw(self, inner: GradientState, key: int, k: int) -> Draw:
        """Return which batches inner step k takes."""
        return self.draws(lambda loop, own: loop.draw(inner, own, k), key)

    def solve_draw(
        self, inner: GradientState, key: int, steps: int, number: int | None = None
    ) -> Draw:
        """Return which batches the inner loss is taken on after the `steps` steps of a run."""
        return self.draws(lambda loop, own: loop.solve_draw(inner, own, steps, number), key)

    def outer_draw(self, inner: GradientState, key: int, k: int | None = None) -> Draw:
        """Return which batches the outer loss is taken on."""
        return self.draws(lambda loop, own: loop.outer_draw(inner, own, k), key)

    def draws(self, of: Callable[[InnerLoop, int], Draw], key: int) -> Draws:
        """Return the draw of each member."""
        return Draws(key, each=tuple(of(loop, own) for loop, own in self.each(key)))

    @tree.replicated(False)
    def batch(self, outer: Tree, inner: GradientState, draw: Draw) -> Batch:
        """Return the prepared inner batch of each member."""
        batches = []
        for i, ((loop, _), own) in enumerate(
            zip(self.each(draw.key), each_draw(draw), strict=True)
        ):
            phi, theta = outer, inner
            if self.prepares_batches:  # views: a module changes its buffers in place
                phi, theta = self.outer_of(outer, i), self.member(inner, i)
            batches.append(loop.batch(phi, theta, own))
        return batches

    def blocks(self, draw: Draw) -> Tensor:
        """Return which block each member's draw takes, (R,)."""
        loops = (loop for loop, _ in self.each(draw.key))
        return torch.stack(
            [loop.blocks(each) for loop, each in zip(loops, each_draw(draw), strict=True)]
        )

    @tree.replicated(False)
    def outer_batch(self, draw: Draw) -> Batch:
        """Return the outer batch of each member."""
        loops = (loop for loop, _ in self.each(draw.key))
        return [loop.outer_batch(each) for loop, each in zip(loops, each_draw(draw), strict=True)]

    # Losses and steps.

    @tree.replicated(False)
    def computed_buffers(self, sources: tuple[str, ...]) -> frozenset[str]:
        """Names of the buffers that an inner step computes from the sources, of theta and phi."""
        if sources not in self._computed:
            for loop, _ in self.each(0):
                self._computed[sources] = loop.computed_buffers(sources)
                break
        return self._computed[sources]

    @tree.replicated(False)
    def check_modules(self, outer: Tree, inner: GradientState) -> None:
        """Raise a `ValueError` if a step on the modules, the same for all, would be wrong."""
        if not self._modules_checked:
            self.first.check_modules(self.outer_of(outer, 0), self.member(inner, 0))
            self._modules_checked = True

    def masks(self, draw: Draw, purpose: str) -> AbstractContextManager[object]:
        """Return a block that seeds nothing: what draws random numbers is refused by vmap."""
        # They would be others than those of a member alone.
        return nullcontext()

    @tree.replicated(False)
    def apply(self, name: str, outer: Tree, inner: GradientState, batch: Sequence[Batch]) -> Any:
        """Return what a function of the problem says of each member; a loss has their axes."""
        with hidden():  # a finite difference counts calls, and the stack of a batch is made once
            parts, rebuild = self._stacked(name, batch)
        trees = (outer, self.per_member, inner.params, inner.buffers, inner.state)
        batched = name in LOSSES and self.problem.batched_losses

        def one(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            made: list[Any] = [tree.map_tensors(lambda _: next(rest), part) for part in trees]
            phi, per_member, params, buffers, state = made
            at = inner._replace(params=params, buffers=buffers, state=state)
            theta = self.tensors(at, per_member.get("frozen", self.frozen))
            value = getattr(self.problem_with(per_member), name)(phi, theta, rebuild(list(rest)))
            if batched or name not in LOSSES:
                return value
            return scalar_loss(value, name).reshape(())

        # One by one, since vmap takes its time with nested arguments.
        shared, own = list(tree.tensors(trees[:2])), list(tree.tensors(trees[2:]))
        with watched_checkpoints(type(self.problem).__name__, name):
            if batched:
                return self._checked_shape(one(*self.broadcast(shared), *own, *parts), name)
            return self.mapped(one, shared, [*own, *parts])

    def _checked_shape(self, loss: Any, name: str) -> Tensor:
        if not isinstance(loss, Tensor) or loss.shape != self.shape:
            what = f"{tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise BatchedLossError(
                f"{type(self.problem).__name__}.{name} must return the loss of each member, of "
                f"shape {self.shape}, where its tensors have such axes in front "
                f"(batched_losses=True); got {what}. Take means over the axes behind these alone, "
                f"or set batched_losses=False."
            )
        return loss

    def updated_state(self, outer: Tree, inner: GradientState, step: int) -> dict[str, Any]:
        """Return the problem's own state of each member after `step` steps."""
        if not self.updates_state:
            return inner.state
        return self.new_state(outer, inner, [step] * math.prod(self.shape))

    def optimizer(self, outer: Tree, step: int) -> InnerOptimizer:
        """Return how each member is stepped, for instance with its own gradient's norm clipped."""
        return OfEach(self, super().optimizer, outer, step)

    def _stacked(
        self, name: str, batches: Sequence[Batch]
    ) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
        """Return the stacked tensors of batches, and what makes a batch of those of one member."""

        def rebuild(parts: Sequence[Tensor]) -> Batch:
            remaining = iter(parts)
            return tree.map_tensors(lambda _: next(remaining), batches[0])

        # Many problems return all of their data in each step: these are stacked once. The stack is
        # that of the same objects: `before` keeps them alive, so that no other object has their
        # identity; they are tensors, numbers and tuples of these, so that none holds another tensor
        # than it did; and a tensor that is written in place, other than by `.data` or numpy, has
        # another version.
        before = self._stacks.get(name)
        if before is not None and before.is_of(batches):
            return before.parts, rebuild
        if not _alike(batches):
            raise RaggedBatchesError(
                f"the batches of {type(self.problem).__name__} differ in their shapes, or in what "
                f"they hold besides tensors."
            )
        parts = list(tree.tensors(self.gathered(batches)))
        if all(map(_immutable, batches)):
            tensors = list(tree.tensors(batches))
            self._stacks[name] = _Stack(batches, tensors, [t._version for t in tensors], parts)
        return parts, rebuild


class OfEach:
    """An inner optimizer that steps each member as it would be stepped alone.

    Args:
        loop: of all members.
        make: returns the inner optimizer of a member from its outer variable and the step.
        outer: the outer variable, on its graph.
        step: inner steps taken before.
    """

    def __init__(
        self, loop: Stacked, make: Callable[[Tree, int], InnerOptimizer], outer: Tree, step: int
    ) -> None:
        self.outer = outer
        self._loop, self._make, self._step = loop, make, step

    def _mapped(self, function: Callable[..., T], *trees: Any) -> T:
        """Return function(optimizer, *trees) of each member."""

        def one(*tensors: Tensor) -> T:
            rest = iter(tensors)
            outer, *made = (tree.map_tensors(lambda _: next(rest), t) for t in (self.outer, *trees))
            return function(self._make(outer, self._step), *made)

        with tree.replicated(False):
            return self._loop.mapped(one, [*tree.tensors(self.outer)], [*tree.tensors(trees)])

    @property
    def first(self) -> InnerOptimizer:
        """What steps the first member, on the graph of its outer variable."""
        return self._make(self._loop.outer_of(self.outer, 0), self._step)

    def init(self, params: Tree) -> State:
        """Return the state before the first step."""
        return self._mapped(lambda optimizer, p: optimizer.init(p), params)

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters and state after one step; new tensors, differentiable."""

        def one(optimizer: InnerOptimizer, p: Tree, g: Tree, s: State) -> tuple[Tree, State]:
            return optimizer.update(p, g, s, step)

        return self._mapped(one, params, grads, state)

    @torch.no_grad()
    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step in place."""
        overwrite(params, state, *self.update(params, grads, state, step))

    def learning_rate(self, step: int) -> Number:
        """Return the base learning rate, or one of each outer variable."""

        like = next(tree.tensors(self.outer))

        def one(optimizer: InnerOptimizer) -> Tensor:
            rate = optimizer.learning_rate(step)
            return rate if isinstance(rate, Tensor) else like.new_full((), rate)

        return self._mapped(one)

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return the gradient that is zero where the steps converge."""

        def one(optimizer: InnerOptimizer, p: Tree, s: Tree) -> Tree:
            return optimizer.stationary_gradient(p, s)

        return self._mapped(one, params, slope)


class _Stack(NamedTuple):
    """Batches whose tensors were stacked, and the versions that these had."""

    batches: Sequence[Batch]
    tensors: list[Tensor]
    versions: list[int]
    parts: list[Tensor]

    def is_of(self, batches: Sequence[Batch]) -> bool:
        """Return whether these are the batches, and nobody has changed them."""
        same = [*map(id, self.batches)] == [*map(id, batches)]
        return same and [t._version for t in self.tensors] == self.versions


def stack(states: Sequence[T]) -> T:
    """Return one tree whose tensors are those of trees of one form, stacked.

    Raises:
        ValueError: they are of several forms.
    """
    columns = list(zip(*map(tree.tensors, states), strict=True))
    for column in columns:
        if len({(t.shape, t.dtype) for t in column}) > 1:
            shapes = " and ".join(sorted({f"{tuple(t.shape)}" for t in column})[:2])
            raise ValueError(f"tensors of the shapes {shapes} cannot be stacked")
    stacked = (torch.stack(column) for column in columns)
    return tree.map_tensors(lambda _: next(stacked), states[0])


def pick(state: T, *index: int | slice) -> T:
    """Return the tree of the members at an index of the leading axes; memory is shared."""
    return tree.map_tensors(lambda t: t[index], state)


def pick_state(inner: GradientState, *index: int | slice) -> GradientState:
    """Return the same of inner states, whose loss may be a mean over the last of these axes."""
    loss = inner.loss[index[: inner.loss.ndim]]
    return GradientState(*pick(inner[:4], *index), inner.step, loss)


Point = tuple[Tree, GradientState]
"""phi and an inner state, where losses are compared."""


def moved(values: Tree) -> Tree:
    """Return values elsewhere: up to a tenth nearer to 0, and above it where they are 0.

    A term that vanishes at the first values, with its gradient, is seen there. Signs, and so most
    domains, are kept.
    """
    factors = {k: v.uniform_(0.05, 0.1) for k, v in tree.detach(tree.clone(values)).items()}
    return {k: torch.where(v == 0, factors[k], v - v * factors[k]) for k, v in values.items()}


def compared(loop: InnerLoop, points: Sequence[Point], key: int, count: int = 1) -> list[Tree]:
    """Return losses, their gradients and buffers, which members have together as each alone.

    Args:
        loop: of one member, or of all.
        points: the first state, and another one. At the first one, gradients in phi may be nothing
            but round-off, as those of weights of examples that a blank model finds alike.
        key: of the run.
        count: what F is multiplied by: the number of members that it is the mean of.
    """
    start, elsewhere = (_evaluated(loop, phi, inner, key, count) for phi, inner in points)
    return [*start[:3], *elsewhere]


def _evaluated(
    loop: InnerLoop, phi: Tree, inner: GradientState, key: int, count: int
) -> list[Tree]:
    """Return the gradients of g and F in theta, buffers, gradients in phi, and the losses."""
    at, phi = inner.at(tree.leaves(inner.params)), tree.leaves(phi)
    g = loop.inner_value(phi, at, loop.draw(inner, key, 0))
    f = loop.outer_value(phi, at, loop.outer_draw(inner, key)) * count
    buffers = {k: v.detach().double() for k, v in at.buffers.items()}
    (g_theta, g_phi), (f_theta, f_phi) = (tree.gradient(v, at.params, phi) for v in (g, f))
    return [g_theta, f_theta, buffers, g_phi, f_phi, {"g": g.detach()}, {"F": f.detach()}]


def agree(a: Tree, b: Tree) -> bool:
    """Return whether two trees are one but for round-off."""
    # By their norm: single gradients may be 0 but for round-off. A sum over members and examples in
    # another order stays far below the root of the precision; another value does not.
    size = tree.norm(b)
    return bool(
        (tree.norm(tree.add(a, b, -1.0)) <= torch.finfo(size.dtype).eps ** 0.5 * size).all()
    )


def _immutable(batch: Batch) -> bool:
    parts = batch if isinstance(batch, tuple) else (batch,)
    return all(isinstance(part, (Tensor, int, float, str, type(None))) for part in parts)


def _alike(batches: Sequence[Batch]) -> bool:
    """Return whether batches differ in the values of their tensors alone."""
    forms = [tree.map_tensors(_form, batch) for batch in batches]
    try:
        return all(form == forms[0] for form in forms)
    except (ValueError, RuntimeError):  # of arrays and objects with tensors inside
        return False


def _form(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype
