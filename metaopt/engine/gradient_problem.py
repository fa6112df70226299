"""What a user states of a problem with two differentiable levels.

Estimators access it through `metaopt.engine.inner_loop.InnerLoop`, which draws the batches,
evaluates the losses and takes the steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn.parameter import UninitializedParameter

from metaopt.engine import tree
from metaopt.engine.hooks import COMMON, GRADIENT
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import BilevelProblem, Tree
from metaopt.engine.random import Draw
from metaopt.engine.scheduled import State

if TYPE_CHECKING:
    from metaopt.engine.inner_loop import InnerLoop

Batch = Any


class InnerTensors(dict[str, Tensor]):
    """theta as a loss gets it: parameters, buffers and frozen weights by the module's names.

    A dict of its own class, since `functional_call` needs one.

    Attributes:
        params: the parameters alone.
        state: the problem's own state, under names of its own: an average has those of theta.
    """

    params: Tree
    state: dict[str, Any]

    def with_constant_buffers(self) -> InnerTensors:
        """Return the same with buffers off the graph: BatchNorm's running statistics as constants.

        `Unroll` and `Forward` give a derivative through running statistics, and estimators that
        cannot refuse a loss that reads them. A loss that calls its module with these defines that
        there is none, as most papers do.
        """
        constant = InnerTensors({k: t if k in self.params else t.detach() for k, t in self.items()})
        constant.params, constant.state = self.params, self.state
        return constant


@tree.tagged("gradient_state")
class GradientState(NamedTuple):
    """The inner level between two steps.

    Args:
        params: what the inner optimizer steps, by name.
        buffers: the module's, changed in place by its forward pass: BatchNorm statistics.
        state: the problem's own, a tree of named tensors; see `GradientProblem.update_state`.
        optimizer: the inner optimizer's moments.
        step: inner steps taken so far.
        loss: inner loss g at the start of the last step, a scalar tensor; for R replicates their
            mean.
    """

    params: Tree
    buffers: Tree
    state: dict[str, Any]
    optimizer: State
    step: int
    loss: Tensor

    def at(self, params: Tree) -> GradientState:
        """Return the state at other parameters, with copies of the buffers for one evaluation.

        Copies of buffers that carry a derivative carry it too.
        """
        buffers = tree.map_tensors(torch.clone, self.buffers) if self.buffers else self.buffers
        return self._replace(params=params, buffers=buffers)


def split_module(module: torch.nn.Module) -> tuple[Tree, Tree, Tree]:
    """Return a module's parameters and buffers as detached copies, and its frozen parameters.

    Frozen parameters (`requires_grad=False`) are the module's own tensors, not copies; tied ones
    appear once, under their first name, and `metaopt.functional_call` ties them again.

    Raises:
        ValueError: a module that torch cannot call with other weights: of TorchScript, or Lazy.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            "split_module got a module of torch.jit.script or trace, which functional_call cannot "
            "call with other weights. Pass the module that it was made of; torch.compile(module) "
            "works too."
        )
    named = list(module.named_parameters())
    for name, parameter in named:
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"parameter {name!r} of {type(module).__name__} has no shape yet (a Lazy module); "
                f"call the module once on an example before split_module."
            )
    params = {k: v.detach().clone() for k, v in named if v.requires_grad}
    buffers = {k: v.detach().clone() for k, v in module.named_buffers()}
    return params, buffers, {k: v.detach() for k, v in named if not v.requires_grad}


class GradientProblem(BilevelProblem):
    """A problem with an inner loss g(phi, theta) and an outer loss F(phi, theta).

    inner = lower level, outer = upper level (meta); phi = `outer`, theta = `inner`. `inner` is a
    dict of the parameters, buffers and frozen weights of the inner level under one set of names,
    ready for `metaopt.functional_call(module, inner, inputs)`; a module may change its buffers
    in place. The problem's own state is `inner.state[...]`.

    A loss is a pure function of (outer, inner, batch): no hidden counter, no question about who
    calls it or whether gradients are on. A batch is a pure function of its `Draw`. Dropout may
    use torch's global generator: every evaluation runs under `metaopt.engine.random.replay`.

    Example:
        class Penalty(GradientProblem):
            inner_optimizer = SGD(lr=0.1)

            def init_outer(self, generator):
                return {"log_penalty": torch.zeros(())}

            def init_params(self, outer, generator):
                return {"weight": torch.zeros(5)}

            def inner_batch(self, draw):
                return train

            def outer_batch(self, draw):
                return validation

            def inner_loss(self, outer, inner, batch):
                penalty = outer["log_penalty"].exp() * (inner["weight"] ** 2).sum()
                return self.outer_loss(outer, inner, batch) + penalty

            def outer_loss(self, outer, inner, batch):
                x, y = batch
                return ((x @ inner["weight"] - y) ** 2).mean()

    Learned rates are a method in place of the attribute, `inner_optimizer(outer, step)`, with
    `step` inner steps taken since theta_0:

        def inner_optimizer(self, outer, step):
            return SGD(lr=outer["log_rates"][step].exp(), momentum=outer["momentum"].sigmoid())

    Any number of an optimizer may be a tensor of one element, `lr` and `weight_decay` a dict of
    tensors by the parameter's name that broadcast to it, and those of `groups` tensors as well. The
    values of tensors are not checked: a negative rate climbs (Meta-SGD, Li et al.,
    arXiv 1707.09835, 2017, allows it), so learn the logarithm of what has to be positive. The
    kind of the optimizer must not depend on phi or the step.

    Attributes:
        inner_optimizer: how theta is stepped; see `metaopt.engine.inner_optimizers`. Where phi
            decides learning rates or other hyperparameters, a method that returns it; see below.
        warm_start: whether an inner run starts where the last one ended (`True`), or from
            `init_params(outer, ...)`: a fork of phi, or from scratch.
        compute_dtype: what the losses are computed in where it is coarser than the parameters
            (autocast), or `None`; finite differences take a larger radius then.
        frozen: weights by name that nobody trains, such as a backbone under adapters: passed to
            the losses, never copied, never in a checkpoint. A checkpoint holds their hash.
        hard_decisions: whether g is taken on decisions of phi without a derivative, made by
            `prepare_batch` (hard pseudo labels); estimators that differentiate g refuse it then.
        batched_losses: whether the losses take tensors with more axes in front, those of phi, theta
            and batches, and return the loss of each of these members, with their axes alone. The
            tasks of a meta-batch and the seeds of a run are then evaluated without
            `torch.func.vmap`, at a part of its cost for small models. phi has axes of length 1
            where it is shared, or none: write `x @ theta["w"] + theta["b"].unsqueeze(-2)` and
            `.mean((-2, -1))`. Compared with each member alone before it is relied on.
    """

    inner_optimizer: InnerOptimizer | Callable[[Tree, int], InnerOptimizer]
    warm_start: bool = True
    compute_dtype: torch.dtype | None = None
    frozen: Mapping[str, Tensor] = {}
    hard_decisions: bool = False
    batched_losses: bool = False
    hooks = COMMON | GRADIENT

    @abstractmethod
    def init_outer(self, generator: Generator) -> Tree:
        """Return the first phi, by name."""

    @abstractmethod
    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the first theta, by name; new tensors, also where they copy `outer`.

        A fork is `{k: v.clone() for k, v in outer.items()}`: `Unroll` differentiates through it.
        """

    @abstractmethod
    def inner_loss(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return g(phi, theta; batch), a scalar."""

    @abstractmethod
    def outer_loss(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return F(phi, theta; batch), a scalar: the meta-objective, its direct phi-terms too."""

    @abstractmethod
    def inner_batch(self, draw: Draw) -> Batch:
        """Return a batch for `inner_loss`."""

    @abstractmethod
    def outer_batch(self, draw: Draw) -> Batch:
        """Return a batch for `outer_loss`."""

    # Hooks with an empty default.

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return the module's buffers that go with the first theta."""
        return {}

    def init_state(self, outer: Tree, params: Tree) -> dict[str, Any]:
        """Return the problem's own state that goes with the first theta; new tensors."""
        return {}

    def update_state(self, outer: Tree, inner: InnerTensors, step: int) -> dict[str, Any]:
        """Return the state after an inner step: `inner` and `inner.state` to `inner.state`.

        A moving average of theta, for instance; new tensors. What is computed from parameters
        carries its derivative. `step` inner steps have been taken since theta_0, this one included.
        """
        return inner.state

    def prepare_batch(self, outer: Tree, inner: InnerTensors, batch: Batch, draw: Draw) -> Batch:
        """Return an inner batch with what is decided once a batch, without a derivative.

        Labels sampled from p_phi, weights that theta decides. `draw.generator` is another one than
        the batch was drawn with.
        """
        return batch

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return the inner level after a last phase, such as retraining with the learned phi.

        Called once, after the last outer step; it steps through `loop`.
        """
        return inner


@runtime_checkable
class SampledProblem(Protocol):
    """A gradient problem whose inner loss is on decisions y ~ p_phi, added by `prepare_batch`."""

    def log_prob(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return log p_phi(y_b) of the decisions in a batch, (B,); differentiable in phi."""
        ...

    def inner_losses(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return the loss of each example of the batch, (B,); their mean is `inner_loss`."""
        ...

    def feedback_loss(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return the part of F that depends on theta, a scalar, without dropout."""
        ...
