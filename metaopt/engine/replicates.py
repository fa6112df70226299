"""Replicates: one run for each of R seeds, trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metaopt.engine import tree
from metaopt.engine.draws import Draws
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import BilevelProblem, Feedback, Tree
from metaopt.engine.random import Draw, Keys, fold, replay
from metaopt.engine.scheduled import Scheduled
from metaopt.engine.seed_attributes import INSTEAD, SeedAttributeError, SeedAttributes, equal
from metaopt.engine.stacked import (
    Point,
    RaggedBatchesError,
    Stacked,
    agree,
    compared,
    moved,
    pick,
    pick_state,
    stack,
)

T = TypeVar("T")


class Replicates(Stacked):
    """The inner level of R runs that differ in their seeds; a key is the `Keys` of all of them.

    Everything has a leading axis R: phi, theta, moments, and the losses, (R,), whose sum is
    differentiated. Replicate i draws what a run with its seed alone draws, so that its results are
    those of that run to round-off.

    Args:
        problems: of each replicate; they may differ in the data that their seed decides.
        seeds: of each replicate.

    Raises:
        TypeError: a problem is no `GradientProblem`.
        ValueError: the problems differ in more, or train replicates of their own.

    Attributes:
        noun, instead: what a replicate is called, and what to do instead, in messages.
    """

    noun = "seed"
    instead = INSTEAD

    def __init__(self, problems: Sequence[GradientProblem], seeds: Sequence[int]) -> None:
        self._check_problems(problems)
        self.loops = [InnerLoop(problem) for problem in problems]
        frozen = [loop.frozen for loop in self.loops]
        self.attributes = SeedAttributes(problems)
        super().__init__(self.attributes.problem)
        self.first, self.seeds = self.loops[0], tuple(seeds)
        self.shape = (len(self.loops),)
        self.per_member = {"attributes": self.attributes.stacked}
        if not all(equal(f, frozen[0]) for f in frozen):
            try:
                self.per_member["frozen"] = stack(frozen)
            except ValueError as error:
                raise ValueError(
                    f"the frozen weights of {type(self.problem).__name__} differ between seeds: "
                    f"{error}. {self.instead}"
                ) from error

    @cached_property
    def frozen(self) -> Tree:
        """The weights that nobody trains; with an axis of replicates where these differ."""
        frozen: Tree = self.per_member.get("frozen", self.loops[0].frozen)
        return frozen

    @cached_property
    def carried_buffers(self) -> frozenset[str]:
        """Names of the buffers through which a derivative leads to a loss one step on."""
        return self.loops[0].carried_buffers

    def each(self, key: int) -> Iterator[tuple[InnerLoop, int]]:
        """Yield each replicate's loop and its key."""
        keys = key.each if isinstance(key, Keys) else [key] * len(self.loops)
        for loop, own in zip(self.loops, keys, strict=True):
            yield self._placed(loop), own

    def _placed(self, loop: InnerLoop) -> InnerLoop:
        """Return the loop of a replicate, at the present outer step and task."""
        loop.outer_step, loop.task_index = self.outer_step, self.task_index
        return loop

    def member(self, inner: GradientState, index: int) -> GradientState:
        """Return the state of one replicate; memory is shared."""
        return pick_state(inner, index)

    def outer_of(self, outer: Tree, index: int) -> Tree:
        """Return the outer variable of one replicate; memory is shared."""
        return pick(outer, index)

    def mapped(
        self, function: Callable[..., T], shared: Sequence[Tensor], own: Sequence[Tensor]
    ) -> T:
        """Return function(*shared, *own) of each replicate."""
        result: T = vmap(function)(*shared, *own)
        return result

    def draws(self, of: Callable[[InnerLoop, int], Draw], key: int) -> Draws:
        """Return the draw of each replicate, which differ in their keys alone."""
        keys = key.each if isinstance(key, Keys) else (key,) * len(self.loops)
        first = of(self._placed(self.first), keys[0])
        later = (_Later.like(first, own, partial(of, self.first)) for own in keys[1:])
        return Draws(key, each=(first, *later))

    def problem_with(self, per_member: Mapping[str, Any]) -> GradientProblem:
        """Return the problem with the attributes of one replicate."""
        attributes = per_member["attributes"]
        return self.attributes.with_values(attributes) if attributes else self.problem

    def optimizer(self, outer: Tree, step: int) -> InnerOptimizer:
        """Return how each replicate is stepped."""
        optimizer = self.problem.inner_optimizer
        if isinstance(optimizer, Scheduled) and optimizer.fixed and tree.is_replicated():
            return optimizer  # its steps are those of single entries, its norms of replicates
        return super().optimizer(outer, step)

    # What the engine asks of the problems.

    def initial_outer(self, key: int) -> Tree:
        """Return the first outer variables."""
        with tree.replicated(False):
            return stack([loop.initial_outer(own) for loop, own in self.each(key)])

    @tree.replicated(False)
    def observe(self, outer: Tree, inner: GradientState, feedback: Feedback) -> GradientState:
        """Return the inner states with what each problem notes of its own feedback."""
        if type(self.problem).observe is BilevelProblem.observe:
            return inner
        states = []
        for i, loop in enumerate(self.loops):
            value = torch.as_tensor(feedback.value)[i]
            metrics = {
                k: v[i] if isinstance(v, Tensor) and v.ndim else v
                for k, v in feedback.metrics.items()
            }
            grad = None if feedback.grad is None else pick(feedback.grad, i)
            own = replace(feedback, value=value, grad=grad, metrics=metrics)
            # Copied: a problem may change its state in place.
            states.append(loop.observe(pick(outer, i), tree.clone(self.member(inner, i)), own))
        return stack(states)

    @tree.replicated(False)
    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return each problem's figures, (R,)."""
        figures = [
            loop.metrics(pick(outer, i), self.member(inner, i)) for i, loop in enumerate(self.loops)
        ]
        return {
            name: torch.stack(
                [torch.as_tensor(f[name], dtype=torch.float64).cpu() for f in figures]
            )
            for name in figures[0]
        }

    @tree.replicated(False)
    def finish(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return the inner levels after each problem's last phase."""
        if type(self.problem).finish is GradientProblem.finish:
            return inner
        return stack([
            loop.finish(pick(outer, i), tree.clone(self.member(inner, i)), own)
            for i, (loop, own) in enumerate(self.each(key))
        ])  # fmt: skip

    def check(self) -> None:
        """Raise a `ValueError` unless replicates trained together have the numbers of each alone.

        Tried on the first batches, for two steps and eight gradients of each replicate.
        """
        name, noun, instead = type(self.problem).__name__, self.noun, self.instead
        keys = Keys([fold(seed, 0) for seed in self.seeds])
        with replay(0), torch.enable_grad():
            try:
                phi = self.initial_outer(fold(Keys(self.seeds), "outer"))
                with torch.no_grad():
                    start = self.initial(phi, keys)
                points = [(phi, start), (moved(phi), start.at(moved(start.params)))]
                with tree.replicated(), twice_differentiable():
                    together = _first_step(self, points, keys)
            except SeedAttributeError:
                raise
            except RaggedBatchesError as error:
                raise ValueError(
                    f"{noun}s cannot be trained together: {error} {instead}"
                ) from error
            except (RuntimeError, TypeError, ValueError) as error:
                says = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
                raise ValueError(
                    f"the losses or the inner optimizer of {name} cannot be evaluated for several "
                    f"{noun}s at once, as where they draw random numbers (dropout), read a number "
                    f"off a tensor or change one in place, or where the {noun} decides how large a "
                    f"tensor is: {says}. {instead}"
                ) from error
            for i, (loop, key) in enumerate(self.each(keys)):
                own = [(pick(phi, i), self.member(inner, i)) for phi, inner in points]
                with twice_differentiable():
                    alone = _first_step(loop, own, key)
                pairs = zip((pick(part, i) for part in together), alone, strict=True)
                if not all(agree(a, b) for a, b in pairs if b):
                    raise ValueError(
                        f"{name} has other losses with {noun} {self.seeds[i]} alone than together "
                        f"with the other {noun}s: they depend on something that its {noun} decides "
                        f"and that is no tensor and no tuple, list or dict of tensors among the "
                        f"problem's attributes. Return it in the batch. {instead}"
                    )

    def _check_problems(self, problems: Sequence[GradientProblem]) -> None:
        """Raise an error where problems cannot be those of replicates."""
        kind = type(problems[0])
        for problem in problems:
            if not isinstance(problem, GradientProblem):
                raise TypeError(
                    f"only gradient problems train {self.noun}s together; {kind.__name__} steps "
                    f"and evaluates itself. {self.instead}"
                )
            if type(problem) is not kind:
                raise TypeError(
                    f"the problems of all {self.noun}s must be of one class; got {kind.__name__} "
                    f"and {type(problem).__name__}."
                )
            if problem.replicates > 1:
                raise ValueError(
                    f"{kind.__name__} trains {problem.replicates} replicates in each run already. "
                    f"{self.instead}"
                )
            if problem.records is not None:
                raise ValueError(
                    f"{kind.__name__} keeps records beside its run, which {self.noun}s cannot "
                    f"share. {self.instead}"
                )


class _Later(Draw):
    """A draw whose key is folded when it is asked for: many batches do not depend on it."""

    @classmethod
    def like(cls, draw: Draw, run_key: int, of: Callable[[int], Draw]) -> Draw:
        """Return a draw that differs from another in its keys; `of(run_key)` has them."""
        later = object.__new__(cls)
        vars(later).update(vars(draw), run_key=run_key, _of=of)
        del vars(later)["key"]
        return later

    def __getattr__(self, name: str) -> Any:
        if name != "key":
            raise AttributeError(name)
        vars(self)["key"] = key = vars(self)["_of"](self.run_key).key
        return key


def _first_step(loop: InnerLoop, points: Sequence[Point], key: int) -> list[Tree]:
    """Return what `compared` does, and parameters and state after a step from the first point."""
    phi, start = points[0]
    after = loop.step(phi, loop.leaves(start), loop.draw(start, key, 0))
    floating = {k: t for k, t in tree.numbered(after.state).items() if t.is_floating_point()}
    return [*compared(loop, points, key), tree.detach(after.params), tree.detach(floating)]
