"""Inner optimizers as pure functions of (parameters, gradients, state, step).

Each one has two forms with the same numbers: `update` returns new tensors and can be
differentiated, `update_` changes the arguments in place and keeps no second copy. Both take one
formula, in the ways of `metaopt.engine.elementwise`, so that a differentiated run and one in place
agree to the bit on a CPU, in float32 and float64. Both equal `torch.optim` step for step.

Every number may be a tensor of one element, and rates and decays one for each parameter, so that
they can be made of phi: see `metaopt.engine.gradient_problem.GradientProblem.inner_optimizer` and
`metaopt.engine.hyperparameters`. `update_` then copies what `update` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.elementwise import Lists, OneByOne, safe_sqrt, transformed
from metaopt.engine.fused_adam import FusedAdam, parts
from metaopt.engine.hyperparameters import (
    Hyperparameter,
    Number,
    check_hyperparameters,
    is_zero,
    root,
    scalar,
)
from metaopt.engine.protocols import Tree
from metaopt.engine.scheduled import Moments, Scheduled, State


class InnerOptimizer(Protocol):
    """One step of an inner optimizer, as a value; see the module's docstring."""

    def init(self, params: Tree) -> State:
        """Return the state before the first step: one dict of tensors per moment."""
        ...

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters and state after one step; new tensors, differentiable."""
        ...

    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step in place."""
        ...

    def learning_rate(self, step: int) -> Number:
        """Return the base learning rate of the step after `step` steps."""
        ...

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return the gradient that is zero where the steps converge, from slope = dg/dtheta.

        `slope` itself where the optimizer adds nothing; differentiable.

        Raises:
            ValueError: the optimizer has no stationary point of the form gradient = 0, or not here,
                or a hyperparameter is made of phi that does not move this point.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SGD(Scheduled):
    """Stochastic gradient descent with weight decay, momentum and Nesterov's form.

    d = g + weight_decay * theta;  b = momentum * b + d;
    theta <- theta - lr * (d + momentum * b if nesterov else b).
    Equal to `torch.optim.SGD` with dampening 0.

    Example:
        >>> SGD(lr=0.1).update({"w": torch.ones(1)}, {"w": torch.full((1,), 2.0)}, {}, 0)
        ({'w': tensor([0.8000])}, {})
    """

    momentum: Number = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameters(self, "0 <= momentum < 1")
        if self.nesterov and is_zero(self.momentum):
            raise ValueError("SGD with nesterov=true needs momentum > 0; got momentum=0.")

    def init(self, params: Tree) -> State:
        """Return a zero momentum buffer, or nothing without momentum."""
        return {} if is_zero(self.momentum) else {"momentum": tree.zeros_like(params)}

    def stepped(
        self, ops: OneByOne, theta: Lists, grads: Lists, moments: Moments,
        lr: Number, decay: Number, step: int,
    ) -> tuple[Lists, Moments]:  # fmt: skip
        """Return parameters and moments of one group after a step; see `Scheduled`."""
        d = grads if is_zero(decay) else ops.new_sum(grads, theta, decay)
        if is_zero(self.momentum):
            return ops.add(theta, d, -lr), {}
        momentum = scalar(self.momentum, theta[0])
        b = ops.add(ops.mul(moments["momentum"], momentum), d)
        d = ops.new_sum(d, b, momentum) if self.nesterov else b
        return ops.add(theta, d, -lr), {"momentum": b}


@dataclass(frozen=True, kw_only=True)
class NormalizedSGD:
    """A step of length `lr` for each of R vectorized models: theta_i <- theta_i - lr g_i / |g_i|.

    The first axis of every tensor counts models, and |g_i| is taken over all tensors of model i. A
    model whose gradient is 0 stays where it is.

    Example:
        step = NormalizedSGD(lr=0.05)
        params, state = step.update(params, grads, step.init(params), 0)

    Args:
        lr: length rho of the step, >= 0.
    """

    lr: Number

    def __post_init__(self) -> None:
        check_hyperparameters(self, "lr >= 0")

    def init(self, params: Tree) -> State:
        """Return no state."""
        return {}

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters after one step; new tensors, differentiable."""
        squares = [g.reshape(len(g), -1).square().sum(1) for g in grads.values()]
        length = safe_sqrt(torch.stack(squares).sum(0))
        rate = self.lr / torch.where(length > 0, length, 1.0)
        rates = {k: rate.view(-1, *[1] * (p.ndim - 1)) for k, p in params.items()}
        return {k: p - grads[k] * rates[k] for k, p in params.items()}, state

    @torch.no_grad()
    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step in place."""
        for name, value in self.update(params, grads, state, step)[0].items():
            params[name].copy_(value)

    def learning_rate(self, step: int) -> Number:
        """Return lr."""
        return self.lr

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Raise a `ValueError`: steps of one length do not converge."""
        raise ValueError(
            "NormalizedSGD takes steps of one length, which do not converge. Use SGD for an "
            "implicit estimator, or estimator=unroll."
        )


@dataclass(frozen=True, kw_only=True)
class Adam(Scheduled):
    """Adam (Kingma and Ba, ICLR 2015) with bias correction.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    theta <- theta - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
    Weight decay is added to g, as in `torch.optim.Adam`.

    Example:
        >>> adam, params = Adam(lr=0.1), {"w": torch.ones(1)}
        >>> state = adam.init(params)
        >>> adam.update_(params, {"w": torch.full((1,), 2.0)}, state, 0)  # in place
        >>> params
        {'w': tensor([0.9000])}
    """

    betas: Sequence[Number] = (0.9, 0.999)
    eps: Number = 1e-8

    decoupled = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameters(self, "eps > 0")
        numbers = [b for b in self.betas if not isinstance(b, Tensor)]
        if not all(0 <= b < 1 for b in numbers) or len(self.betas) != 2:
            raise ValueError(f"Adam needs two betas in [0, 1); got {list(self.betas)}.")

    def init(self, params: Tree) -> State:
        """Return zero first and second moments."""
        return {"mean": tree.zeros_like(params), "square": tree.zeros_like(params)}

    def stepped(
        self, ops: OneByOne, theta: Lists, grads: Lists, moments: Moments,
        lr: Number, decay: Number, step: int,
    ) -> tuple[Lists, Moments]:  # fmt: skip
        """Return parameters and moments of one group after a step; see `Scheduled`."""
        b1, b2, eps = (scalar(x, theta[0]) for x in (*self.betas, self.eps))
        t = step + 1
        if not is_zero(decay):
            if self.decoupled:
                theta = ops.mul(theta, 1 - lr * decay)
            else:
                grads = ops.new_sum(grads, theta, decay)
        mean = ops.lerp(moments["mean"], grads, 1 - b1)
        square = ops.add_square(ops.mul(moments["square"], b2), grads, 1 - b2)
        denominator = ops.root(square, root(1 - b2**t), eps)
        theta = ops.add_quotient(theta, mean, denominator, -lr / (1 - b1**t))
        return theta, {"mean": mean, "square": square}

    def _differentiable(
        self, theta: Lists, grads: Lists, moments: Moments, lr: Number, decay: Number, step: int
    ) -> tuple[Lists, Moments]:
        if not self.fixed or transformed():
            return super()._differentiable(theta, grads, moments, lr, decay, step)
        lists = (theta, grads, moments["mean"], moments["square"])
        flat: Any = FusedAdam.apply(self, lr, decay, step, *(t for part in lists for t in part))  # type: ignore[no-untyped-call]
        new, mean, square = parts(flat, 3)
        return new, {"mean": mean, "square": square}


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    theta <- (1 - lr * weight_decay) theta before Adam's step; equal to `torch.optim.AdamW`.

    Example:
        >>> adamw, params = AdamW(lr=0.1, weight_decay=0.5), {"w": torch.ones(1)}
        >>> adamw.update_(params, {"w": torch.full((1,), 2.0)}, adamw.init(params), 0)
        >>> params
        {'w': tensor([0.8500])}
    """

    weight_decay: Hyperparameter = 0.01

    decoupled = True

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return `slope`; raise a `ValueError` with a decay, which depends on Adam's moments.

        The steps converge to where dg/dtheta + weight_decay * (sqrt(v) + eps) * theta = 0, with a
        second moment v that the batches decide.
        """
        if not all(is_zero(decay) for _, _, decay in self._grouped(params, 0)):
            raise ValueError(
                "AdamW's decoupled weight decay has no stationary point that a gradient states, "
                "which an implicit estimator solves for. Put the decay in inner_loss, use Adam "
                "(its weight_decay is part of the gradient) or weight_decay=0, or "
                "estimator=unroll."
            )
        return super().stationary_gradient(params, slope)
