"""The differentiable inner level: what a gradient problem states and how it is stepped.

A `GradientProblem` supplies two losses, two batch functions and two initial values; the stepping
below is the same for all of them, in place (`advance`) or on the graph (`unroll_step`).
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt.engine import distributed, tree
from metaopt.engine.inner_optimizers import InnerOptimizer, State
from metaopt.engine.protocols import Feedback, Problem, Tree
from metaopt.engine.random import fold, generator, replay

Batch = Any


class GradientState(NamedTuple):
    """The inner level of a gradient problem.

    Args:
        params: what the inner optimizer trains, by name.
        buffers: what travels along untrained: BatchNorm statistics, frozen weights, averages.
        optimizer: the inner optimizer's moments.
        step: inner steps taken so far.
        loss: inner loss g at the start of the last step, a scalar tensor.
    """

    params: Tree
    buffers: Tree
    optimizer: State
    step: int
    loss: Tensor


torch.serialization.add_safe_globals([GradientState])


def state_leaves(state: GradientState) -> GradientState:
    """Return the state with parameters and moments as new leaves of a graph."""
    moments = {k: tree.leaves(v) for k, v in state.optimizer.items()}
    return state._replace(params=tree.leaves(state.params), optimizer=moments)


def state_tensors(state: GradientState) -> list[Tensor]:
    """Return what a derivative flows through: the parameters, then the moments."""
    moments = (t for moment in state.optimizer.values() for t in moment.values())
    return [*state.params.values(), *moments]


def split_module(module: torch.nn.Module) -> tuple[Tree, Tree]:
    """Return a module's trainable parameters and everything else, as detached copies.

    Frozen parameters (`requires_grad=False`) count as buffers; tied ones appear once, under their
    first name, and `torch.func.functional_call` ties them again.
    """
    named = list(module.named_parameters())
    params = {k: v.detach().clone() for k, v in named if v.requires_grad}
    frozen = {k: v.detach().clone() for k, v in named if not v.requires_grad}
    return params, frozen | {k: v.detach().clone() for k, v in module.named_buffers()}


class GradientProblem(Problem):
    """A problem with an inner loss g(phi, theta) and an outer loss F(phi, theta).

    Symbols: phi = `outer`, theta = `inner`; both losses return a scalar tensor. `inner` holds the
    parameters and the buffers of the inner level under one set of names, ready for
    `torch.func.functional_call(module, inner, inputs)`; a module may change its buffers in place.

    A batch is a pure function of the generator it is given. Dropout may use torch's global
    generator: every evaluation runs under `metaopt.engine.random.replay`.

    Attributes:
        inner_optimizer: how theta is stepped; see `metaopt.engine.inner_optimizers`.
        warm_start: whether an inner run starts from the last one's end (`True`), or from
            `init_params(outer, ...)`: a fork of phi, or afresh.
        compute_dtype: what the losses are computed in where it is coarser than the parameters
            (autocast), or `None`; finite differences take a larger radius then.
    """

    inner_optimizer: InnerOptimizer
    warm_start: bool = True
    compute_dtype: torch.dtype | None = None

    @abstractmethod
    def init_outer(self, generator: Generator) -> Tree:
        """Return the first phi, by name."""

    @abstractmethod
    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the first theta, by name; new tensors, also where they copy `outer`.

        A fork is `{k: v.clone() for k, v in outer.items()}`: `Unroll` differentiates through it.
        """

    @abstractmethod
    def inner_loss(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return g(phi, theta; batch), a scalar."""

    @abstractmethod
    def outer_loss(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return F(phi, theta; batch), a scalar: the meta-objective, its direct phi-terms too."""

    @abstractmethod
    def inner_batch(self, generator: Generator) -> Batch:
        """Return a batch for `inner_loss`."""

    @abstractmethod
    def outer_batch(self, generator: Generator) -> Batch:
        """Return a batch for `outer_loss`."""

    # Hooks with an empty default.

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return the buffers that go with the first theta."""
        return {}

    def renew_buffers(self, buffers: Tree, last: Tree) -> Tree:
        """Return the buffers of a new fork, from new ones and those that the last fork left."""
        return buffers

    def decide(self, outer: Tree, inner: Tree, batch: Batch, generator: Generator) -> Batch:
        """Return `batch` with what is sampled from p_phi added (hard pseudo labels)."""
        return batch

    def carry(self, outer: Tree, params: Tree, buffers: Tree, step: int) -> Tree:
        """Return the buffers after an inner step (an average of the parameters, a counter)."""
        return buffers

    # What the engine and the estimators call.

    @final
    def init_inner(self, outer: Tree, inner: GradientState | None, key: int) -> GradientState:
        """Return the last state (warm start), or a new one."""
        if inner is not None and self.warm_start:
            return inner
        with torch.no_grad():
            params = self.start(outer, key)
            buffers = self.init_buffers(outer, params)
            if inner is not None:
                buffers = self.renew_buffers(buffers, inner.buffers)
        first = next(iter(params.values()))
        return GradientState(
            params, buffers, self.inner_optimizer.init(params), 0,
            torch.full((), torch.nan, dtype=first.dtype, device=first.device),
        )  # fmt: skip

    @final
    def start(self, outer: Tree, key: int) -> Tree:
        """Return the first theta of an inner run, on the graph of `outer` if made from it."""
        return self.init_params(outer, generator(fold(key, "params")))

    @final
    def inner_value(
        self, outer: Tree, params: Tree, buffers: Tree, key: int, batch: Batch = None
    ) -> Tensor:
        """Return g(phi, theta) on the batch and the dropout masks of `key`.

        `buffers` may be changed in place. `batch` replaces the one that `key` stands for.
        """
        if batch is None:
            batch = self.draw(outer, params | buffers, key)
        with replay(fold(key, "noise")):
            return self.inner_loss(outer, params | buffers, batch)

    @final
    def draw(self, outer: Tree, inner: Tree, key: int) -> Batch:
        """Return the inner batch of `key`, decisions included."""
        batch = self.inner_batch(generator(fold(key, "batch", distributed.rank())))
        with torch.no_grad():
            return self.decide(
                outer, inner, batch, generator(fold(key, "decide", distributed.rank()))
            )

    @final
    def draw_outer(self, key: int) -> Batch:
        """Return the outer batch of `key`."""
        return self.outer_batch(generator(fold(key, "outer batch", distributed.rank())))

    @final
    def outer_value(self, outer: Tree, params: Tree, buffers: Tree, key: int) -> Tensor:
        """Return F(phi, theta) on the outer batch and masks of `key`; buffers are left alone."""
        with replay(fold(key, "outer noise")):
            return self.outer_loss(outer, params | tree.clone(buffers), self.draw_outer(key))

    @final
    def advance(
        self, outer: Tree, inner: GradientState, key: int, batch: Batch = None
    ) -> GradientState:
        """Take one inner step in place: the argument's tensors become the result's."""
        params = tree.leaves(inner.params)
        outer = tree.detach(outer)
        loss = self.inner_value(outer, params, inner.buffers, key, batch)
        grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
        return self.step_along(outer, inner, tree.like(params, grads), loss)

    @final
    @torch.no_grad()
    def step_along(
        self, outer: Tree, inner: GradientState, grads: Tree, loss: Tensor
    ) -> GradientState:
        """Take one inner step in place along a gradient; it is averaged over ranks here.

        `loss` is reported with the state.
        """
        mean = distributed.mean(grads)
        self.inner_optimizer.update_(inner.params, mean, inner.optimizer, inner.step)
        buffers = self.carry(outer, inner.params, inner.buffers, inner.step + 1)
        return inner._replace(buffers=buffers, step=inner.step + 1, loss=loss.detach())

    @final
    def unroll_step(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Take one inner step on the graph of `outer` and `inner`; new tensors."""
        buffers = tree.clone(inner.buffers)
        loss = self.inner_value(outer, inner.params, buffers, key)
        grads = torch.autograd.grad(
            loss, list(inner.params.values()), create_graph=True, materialize_grads=True
        )
        mean = distributed.mean_on_graph(tree.like(inner.params, grads))
        params, optimizer = self.inner_optimizer.update(
            inner.params, mean, inner.optimizer, inner.step
        )
        with torch.no_grad():
            buffers = self.carry(outer, tree.detach(params), buffers, inner.step + 1)
        return GradientState(params, buffers, optimizer, inner.step + 1, loss.detach())

    @final
    def inner_step(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return the state one step on; the argument is left as it was."""
        return self.advance(outer, tree.clone(inner), key)

    @final
    @torch.no_grad()
    def evaluate(self, outer: Tree, inner: GradientState, key: int) -> Feedback:
        """Return F on the outer batch of `key`."""
        return Feedback(self.outer_value(outer, inner.params, inner.buffers, key))


@runtime_checkable
class SampledProblem(Protocol):
    """A gradient problem whose inner loss is on decisions y ~ p_phi, added by `decide`."""

    def log_prob(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return log p_phi(y_b) of the decisions in a drawn batch, (B,); differentiable in phi."""
        ...

    def inner_losses(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return the loss of each row of the batch, (B,); their mean is `inner_loss`."""
        ...

    def feedback_loss(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return the part of F that depends on theta, a scalar, without dropout."""
        ...


def run(problem: Problem, outer: Any, inner: Any, key: int, steps: int) -> Any:
    """Take `steps` inner steps without a graph and return the state; `inner` is given away."""
    step = problem.advance if isinstance(problem, GradientProblem) else problem.inner_step
    for k in range(steps):
        inner = step(outer, inner, fold(key, k))
    return inner


def require_fixed_start(
    problem: GradientProblem, outer: Tree, inner: GradientState, key: int, estimator: str
) -> None:
    """Raise a `ValueError` if this run starts from a theta_0 made of phi."""
    if problem.warm_start or inner.step > 0:
        return
    if any(t.requires_grad for t in problem.start(tree.leaves(outer), key).values()):
        raise ValueError(
            f"{estimator} holds theta_0 fixed, and {type(problem).__name__} makes it from the "
            f"outer variable (warm_start=False): its derivative would be missing. Use "
            f"estimator=unroll, forward or first_order."
        )


def require_gradients(problem: Any, estimator: str) -> None:
    """Raise a `TypeError` that says what to use instead unless `problem` has both losses."""
    if not isinstance(problem, GradientProblem):
        raise TypeError(
            f"{estimator} needs a GradientProblem (inner_loss, outer_loss, inner_batch, "
            f"outer_batch); {type(problem).__name__} is none. Use estimator=score, or "
            f"estimator=evolution_strategies for a tensor-valued outer variable."
        )


def twice_differentiable() -> AbstractContextManager[None]:
    """Return a block in which attention has a second derivative: torch's plain kernel."""
    return sdpa_kernel(SDPBackend.MATH)
