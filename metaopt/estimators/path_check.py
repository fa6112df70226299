"""Paths from phi to F that an estimator drops or that a problem cuts, refused.

Looked for at the first state, and again at the states that a run comes to: a problem may let F or g
read a module's buffers after a warm-up, or detach a tensor of phi. Looks at outer steps that are
powers of two cost O(log T) of them, where one at each would cost 5 to 9 % of a run. A look changes
no number: batches and masks follow from their draws, and buffers are copied. What is cut after a
look and mended before the next one is not seen: a hypergradient of that outer step does not tell,
since a tensor of phi that is cut from g may reach F on another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.scheduled import Scheduled
from metaopt.estimators.buffer_check import check_buffers
from metaopt.estimators.held_fixed import refuse_buffers
from metaopt.estimators.optimizer_check import (
    Uses,
    hyperparameters,
    optimizers,
    refuse_learned,
    refuse_left_out,
    refuse_shared_clip,
    refuse_unused,
)

if TYPE_CHECKING:
    from metaopt.estimators.inner_run import InnerRun


class Start(NamedTuple):
    """Where an inner run starts.

    Args:
        phi: leaves of the outer variable.
        inner: the state, off the graph.
        forks: whether it is made of phi.
        uses: of phi, which tensors the making of the state has used.
        through: names of the tensors of phi from which a derivative leads to the state.
    """

    phi: Tree
    inner: GradientState
    forks: bool
    uses: Uses
    through: set[str]

    @classmethod
    def of(
        cls, loop: InnerLoop, outer: Tree, key: int, inner: GradientState | None = None
    ) -> Start:
        """Return the start of a run at the state `inner`, or at a new one of that key.

        With a warm start the state is held fixed, whatever has made it.
        """
        phi = tree.leaves(outer)
        if inner is not None and loop.problem.warm_start:
            return cls(phi, tree.detach(inner), False, Uses(phi), set())
        with Uses(phi) as uses:
            start = loop.initial(phi, key)
        if loop.problem.warm_start:
            return cls(phi, tree.detach(start), False, Uses(phi), set())
        made = list(tree.tensors([start.params, start.buffers, start.state]))
        through = tree.reached([t.sum() for t in made], phi)
        forks = any(t.requires_grad for t in made)
        return cls(phi, tree.detach(start), forks, uses, through)


def looks_again(outer_step: int) -> bool:
    """Return whether paths are looked for before the step that follows `outer_step` ones."""
    return outer_step > 0 and outer_step & (outer_step - 1) == 0


def check_paths(estimator: InnerRun, loop: InnerLoop, start: Start, key: int) -> None:
    """Raise an error if the estimator would drop a path, or there is none.

    Args:
        estimator: what it carries and what it drops.
        loop: the inner level.
        start: of the inner run; left as it is.
        key: of the inner run.

    Cost: one evaluation of F and four of g at most, with their gradients in phi, and twice that
    where a module has buffers of floating point.
    """
    name, steps = type(estimator).__name__, estimator.inner_steps
    phi, inner, draws = start.phi, start.inner, _draws(loop, start.inner, key, steps)
    check_buffers(loop, phi, inner)
    if estimator.misses_buffers_of:
        refuse_buffers(loop, name, phi, inner, estimator.misses_buffers_of, draws)
    elif estimator.differentiates_inner:
        carried = loop.carried_buffers
        refuse_buffers(loop, name, phi, inner, ("theta", "phi"), draws, carried)
    if estimator.differentiates_inner:
        _refuse_unconnected(estimator, loop, start, draws)
    for optimizer in optimizers(loop, phi, inner.step, steps):
        if not estimator.carries_optimizer:
            refuse_learned(loop, name, optimizer)
        refuse_unused(loop, optimizer, inner.params)
        refuse_shared_clip(loop, optimizer)
        if estimator.needs_stationarity:
            optimizer.stationary_gradient(inner.params, tree.zeros_like(inner.params))
    if callable(loop.problem.inner_optimizer) and 0 < estimator.carried_steps < steps:
        refuse_left_out(loop, name, phi, inner.step, steps, estimator.carried_steps)


def _read_by_outer(
    loop: InnerLoop, phi: Tree, inner: GradientState, outer_loss: Tensor, theta: Tree
) -> set[str]:
    """Return the names of theta that F reads, or all where one moves F through another's step."""
    optimizer = loop.optimizer(phi, inner.step)
    apart = isinstance(optimizer, Scheduled) and optimizer.clip_norm is None
    if loop.updates_state or loop.has_buffers or not apart:
        return set(theta)
    return tree.reached(outer_loss, theta)


def _moving(inner_loss: Tensor, phi: Tree, theta: Tree, watched: set[str]) -> set[str]:
    """Return the names of phi on which the steps of the watched part of theta depend.

    By the gradient of g there, and by what of theta that gradient depends on. A term of g that
    holds no theta steps nothing.
    """
    read = tree.reached(inner_loss, phi)
    if not read:
        return read
    try:
        grads = torch.autograd.grad(
            tree.total(inner_loss), list(theta.values()), create_graph=True, allow_unused=True
        )
        slopes = {k: g for k, g in zip(theta, grads, strict=True) if g is not None}
        followed, reached = set[str](), set[str]()
        while not watched <= followed:
            followed |= watched
            ends = [slopes[k].sum() for k in followed & slopes.keys()]
            reached = tree.reached(ends, {f"theta {k}": t for k, t in theta.items()} | phi)
            watched = {k for k in theta if f"theta {k}" in reached}
        return reached & phi.keys()
    except RuntimeError:  # no second derivative: told where one is taken
        return read


def _draws(loop: InnerLoop, inner: GradientState, key: int, steps: int) -> list[Draw]:
    """Return the batches of the first two steps of a run, of its last one, and of a solve.

    A problem may let phi in, or read a buffer, later than at the first step.
    """
    last = max(steps - 1, 0)
    draws = [loop.draw(_after(inner, k), key, k) for k in sorted({0, min(1, last), last})]
    return [*draws, loop.solve_draw(_after(inner, steps), key, steps)]


def _after(inner: GradientState, steps: int) -> GradientState:
    return inner._replace(step=inner.step + steps)


def _refuse_unconnected(
    estimator: InnerRun, loop: InnerLoop, start: Start, draws: list[Draw]
) -> None:
    """Raise a `ValueError` if phi, or a tensor of it that is used, has no derivative to F.

    It leads there by itself, or from phi to g, the inner optimizer or theta_0 and from theta to F;
    through theta_0 only where the estimator carries that. A hypergradient that is zero for want of
    a path would leave phi where it is, and the run would look like one that has converged. One that
    is zero in value is another thing.

    Args:
        estimator: who asks.
        loop: the inner level.
        start: of the inner run.
        draws: those at which g is looked at.
    """
    phi, inner, uses = start.phi, start.inner, start.uses
    name, steps = type(estimator).__name__, estimator.inner_steps
    if not any(t.numel() for t in phi.values()):
        return  # nothing to learn, as where weights are a function of each batch
    theta, state = tree.leaves(inner.params), tree.map_tensors(tree.leaf, inner.state)
    after = inner._replace(params=theta, state=state)
    after = after._replace(state=loop.updated_state(phi, after, inner.step + 1))
    outer_draw = loop.outer_draw(_after(inner, steps), draws[0].run_key)
    read = set[str]()
    with uses:
        outer_loss = loop.outer_value(phi, after, outer_draw)
    watched = _read_by_outer(loop, phi, inner, outer_loss, theta)
    for draw in draws:
        copied = inner.at(tree.leaves(inner.params))
        with uses, twice_differentiable():
            inner_loss = loop.inner_value(phi, copied, draw)
        # One graph at a time. A difference of gradients needs no derivative of theirs.
        if estimator.second_derivatives:
            read |= _moving(inner_loss, phi, copied.params, watched)
        else:
            read |= tree.reached(inner_loss, phi)
    made = [t for o in optimizers(loop, phi, inner.step, steps) for t in hyperparameters(o)]
    connected, problem = tree.reached(outer_loss, phi), type(loop.problem).__name__
    at = f" at outer step {loop.outer_step + 1}" if loop.outer_step else ""
    if tree.reached(outer_loss, theta | tree.numbered(state)):
        connected |= read | tree.reached(made, phi)
        if estimator.carries_start:
            connected |= start.through
    elif not connected:
        raise ValueError(
            f"{name} would return 0{at}: no derivative leads from the inner parameters, or a "
            f"state made of them, to outer_loss of {problem}. Look for a detach(), .item(), .data "
            f"or torch.no_grad() in outer_loss and update_state, or use a black-box estimator "
            f"(estimator=evolution_strategies)."
        )
    if lost := uses.without(connected) if connected else list(phi):
        listed = ", ".join(f"{k} {tuple(phi[k].shape)}" for k in lost)
        what = (
            "would leave a part of the outer variable as it is" if connected else "would return 0"
        )
        raise ValueError(_lost_sentence(
            name, problem, listed, what, at, start_alone=bool(start.through & set(lost))
        ))  # fmt: skip


def _lost_sentence(
    estimator: str, problem: str, listed: str, what: str, at: str, start_alone: bool
) -> str:
    """Return the message for tensors of phi, as listed, that lead to theta_0 alone or nowhere."""
    if start_alone:
        return (
            f"{estimator}(any_start=True) {what}: a derivative leads from the outer variable "
            f"({listed}) to theta_0 of {problem}, where it does not count, and none to inner_loss, "
            f"outer_loss or inner_optimizer. Let inner_loss depend on it, as by a proximal term "
            f"(strength / 2 * |theta - phi|^2), or use estimator=unroll."
        )
    return (
        f"{estimator} {what}{at}: no derivative leads from the outer variable ({listed}) to "
        f"outer_loss of {problem}, nor to what moves the parameters that it reads (gradients of "
        f"inner_loss in them, inner_optimizer, theta_0). Look for a detach(), .item(), .data or "
        f"torch.no_grad() on the way, and for a term of inner_loss that holds no parameter; or use "
        f"a black-box estimator (estimator=evolution_strategies)."
    )
