"""What estimators share: K inner steps, dF at their end, what is refused, logged and saved."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.module_check import HALF, check_outer_loss
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import Draw, generator, replay
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.held_fixed import Held, refuse_state
from metaopt.estimators.optimizer_check import refuse_learned, refuse_shared_clip
from metaopt.estimators.path_check import Start, check_paths, looks_again
from metaopt.estimators.second_derivatives import check_second_derivatives

Result = tuple[GradientState, Feedback]
"""The inner state after a run, and what it says about phi."""

DIVERGED = 1e12
"""An inner loss from which nothing comes back: the next steps overflow."""


class InnerRun:
    """An estimator that takes K inner steps and says something of where they end.

    Args:
        inner_steps: number K of inner steps, at least `least_steps`.

    Attributes:
        least_steps: smallest K.
        carries_state: whether the derivative of the problem's own state is in the result.
        misses_buffers_of: what a module's buffers, such as BatchNorm's running statistics, may be
            computed from without their derivative being in the result: theta, phi.
        differentiates_inner: whether g is differentiated in phi, which decisions of phi without a
            derivative would make wrong.
        carries_start: whether the derivative of a theta_0 made of phi is in the result.
        any_start: whether none need be, since the result is that of a theta that does not depend on
            theta_0.
        needs_stationarity: whether the result is that of a theta to which the inner optimizer
            converges, which AdamW's decoupled decay does not let be stated.
        carries_optimizer: whether the derivative of hyperparameters of the inner optimizer that are
            made of phi is in the result; where stationarity is needed, of its decay alone.
        second_derivatives: how those of g are taken: by two reverse passes, forward in theta and
            reverse in phi, or not at all.
        needs_precision: what must not be of half precision, of theta and phi: a difference of two
            gradients rounds away, and torch has no dense factorization of it.
        memory: what is kept from one call to the next: `name` is the attribute `_name`.
        stacks: whether each replicate of a run with several seeds gets what it would get alone;
            see `metaopt.engine.tree.replicated`.
    """

    least_steps: ClassVar[int] = 1
    carries_state: ClassVar[bool] = False
    misses_buffers_of: ClassVar[tuple[str, ...]] = ("theta", "phi")
    differentiates_inner: ClassVar[bool] = True
    carries_start: bool = False
    any_start: bool = False
    needs_stationarity: bool = False
    carries_optimizer: bool = False
    second_derivatives: ClassVar[Literal["reverse", "forward"] | None] = None
    needs_precision: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    stacks: bool = False

    def __init__(self, inner_steps: int = 1) -> None:
        self.inner_steps = inner_steps
        check_ranges(self, f"inner_steps >= {self.least_steps}")

    def check(self, loop: InnerLoop) -> None:
        """Raise an error that says what to use instead where this estimator would be wrong."""
        name = type(self).__name__
        require_gradients(loop, name, self.differentiates_inner)
        # What a problem draws from torch's global generators here must not move those of the run.
        with replay(0):
            outer = tree.named_tensors(loop.problem.init_outer(generator(0)), name)
            start = Start.of(loop, outer, 0)
            phi, inner = start.phi, start.inner
            loop.check_modules(phi, inner)
            _refuse_half(loop, name, phi, inner, self.needs_precision)
            check_outer_loss(loop, phi, inner)
            if start.forks and not (self.carries_start or self.any_start):
                raise ValueError(
                    f"{name} holds theta_0 fixed, and {type(loop.problem).__name__} makes it from "
                    f"the outer variable (warm_start=False): its derivative would be missing. Use "
                    f"estimator=unroll, forward or first_order, and no truncation."
                )
            if not self.carries_state and loop.updates_state:
                refuse_state(loop, name, phi, inner)
            check_paths(self, loop, start, 0)
            if self.second_derivatives:
                check_second_derivatives(
                    loop, name, phi, inner, self.second_derivatives == "forward"
                )

    def __call__(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return what `estimate` does; at some outer steps look for dropped paths before."""
        if looks_again(loop.outer_step):
            self.check_again(loop, outer, inner, key)
        return self.estimate(loop, outer, inner, key)

    def check_again(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> None:
        """Raise an error where a run has come to drop a path; changes nothing."""
        with replay(0), tree.replicated(False):
            # Members run the same code on other numbers.
            loop, outer, inner, key = loop.first_of(outer, inner, key)
            check_paths(self, loop, Start.of(loop, outer, key, inner), key)

    @abstractmethod
    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after the steps of one outer step, and what it says of phi."""

    @property
    def carried_steps(self) -> int:
        """How many of the last inner steps are differentiated."""
        return self.inner_steps

    def result(
        self, inner: GradientState, value: Tensor | float, grad: Tree,
        metrics: Mapping[str, Tensor | float] | None = None, **cost: float,
    ) -> Result:  # fmt: skip
        """Return the end of a run, with the last inner loss logged and K inner steps charged."""
        metrics = {"inner/loss": inner.loss, **(metrics or {})}
        cost = {"inner_steps": self.inner_steps, **cost}
        return inner, Feedback(value, grad, metrics=metrics, cost=cost)

    def held(self, loop: InnerLoop, inner: GradientState) -> Held:
        """Return leaves in the place of what this estimator holds fixed of a state.

        For F, once an outer step. Of g the problem's state alone is looked at, since the look at
        running statistics costs some microseconds an operation.
        """
        buffers = loop.computed_buffers(self.misses_buffers_of) if self.misses_buffers_of else ()
        return Held(loop, type(self).__name__, inner, not self.carries_state, buffers)

    def outer_gradients(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int, before: Any = None,
        draw: Draw | None = None,
    ) -> tuple[Tensor, Tree, Tree]:  # fmt: skip
        """Return F, v = dF/dtheta averaged over ranks, and the direct dF/dphi; costs one gradient.

        Args:
            loop: the inner level.
            outer, inner: where they are taken.
            key: of the outer step.
            before: the problem's state before the last step; where it is given, v goes through the
                update of the state by that step as well.
            draw: the batch of F; `None` for that of the outer step.

        Raises:
            ValueError: F reads what this estimator holds fixed.
        """
        phi, theta = tree.leaves(outer), tree.leaves(inner.params)
        if not self.carries_optimizer and callable(loop.problem.inner_optimizer):
            # Of the last step: phi may decide a rate from some step on.
            optimizer = loop.optimizer(phi, max(inner.step - 1, 0))
            refuse_learned(loop, type(self).__name__, optimizer)
        held = self.held(loop, inner._replace(params=theta))
        at = held.inner
        if before is not None:
            at = at._replace(state=loop.updated_state(phi, at._replace(state=before), inner.step))
        with held.block():
            loss = loop.outer_value(phi, at, draw or loop.outer_draw(inner, key))
        held.refuse_read("outer_loss", loss)
        v, direct = tree.gradient(loss, theta, phi)
        # v is averaged before it is multiplied: a product with each rank's own would be another.
        return loss.detach(), distributed.mean(v), direct

    def divergence(self, feedback: Feedback) -> str:
        """Return a clause that names what diverged, or nothing, for feedback that is not finite."""
        loss = largest(feedback.metrics.get("inner/loss", 0.0))
        if loss < DIVERGED:
            return ""
        return (
            f": the inner loss is {loss:.3g}, so the inner level has diverged; lower the learning "
            f"rate of inner_optimizer or set its clip_norm"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next call needs of this one."""
        return {name: getattr(self, f"_{name}") for name in self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is another estimator's.
        """
        if set(state) != set(self.memory):
            raise ValueError(
                f"{type(self).__name__} keeps {', '.join(self.memory) or 'no state'}, but the "
                f"checkpoint holds {', '.join(state) or 'nothing'}; it was written by another "
                f"estimator."
            )
        for name, value in state.items():
            setattr(self, f"_{name}", value)


def largest(values: Tensor | float) -> float:
    """Return the largest magnitude, of replicates where there are some; NaN if one is."""
    return float(torch.as_tensor(values).detach().abs().max())


def require_gradients(loop: Any, estimator: str, through_decisions: bool = True) -> None:
    """Raise an error that says what to use instead unless g can be differentiated in phi.

    Args:
        loop: the inner level.
        estimator: who asks, for the message.
        through_decisions: whether the estimator differentiates what g owes to decisions of phi.

    Raises:
        TypeError: the problem states no losses.
        ValueError: the problem's decisions have no derivative.
    """
    problem = loop.problem
    if not isinstance(loop, InnerLoop):
        raise TypeError(
            f"{estimator} needs a GradientProblem (inner_loss, outer_loss, inner_batch, "
            f"outer_batch); {type(problem).__name__} is none. Use estimator=score, or "
            f"estimator=evolution_strategies for a tensor-valued outer variable."
        )
    if through_decisions and problem.hard_decisions:
        raise ValueError(
            f"the inner loss of {type(problem).__name__} is on decisions without a derivative: "
            f"{estimator} would see no feedback. Use estimator=score_function, or let the problem "
            f"make no hard decisions (problem.labels=soft)."
        )


def check_run(loop: Any) -> None:
    """Raise what training the problem raises, at the first theta; accept a black box."""
    if isinstance(loop, InnerLoop):
        with replay(0):
            outer = loop.problem.init_outer(generator(0))
            loop.check_modules(outer, tree.detach(loop.initial(outer, 0)))
            refuse_shared_clip(loop, loop.optimizer(outer, 0))


def _refuse_half(
    loop: InnerLoop, estimator: str, phi: Tree, inner: GradientState, needs: Sequence[str]
) -> None:
    """Raise a `ValueError` if what needs more precision, of theta and phi, has half."""
    problem = type(loop.problem).__name__
    trees = {"theta": ("the parameter", inner.params), "phi": ("the outer variable's", phi)}
    for whose, tensors in (trees[name] for name in needs):
        for key, value in tensors.items():
            if value.dtype in HALF:
                raise ValueError(
                    f"{estimator} needs more precision than {whose} {key!r} of {problem} has "
                    f"({value.dtype}). Keep it in float32 and compute in half precision under "
                    f"torch.autocast, with {problem}.compute_dtype = torch.bfloat16; or use "
                    f"estimator=unroll or one_step."
                )
