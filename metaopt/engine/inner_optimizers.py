"""Inner optimizers as pure functions of (parameters, gradients, state, step).

Each one has two forms with the same numbers: `update` returns new tensors and can be
differentiated, `update_` changes the arguments in place through torch's own fused loops and keeps
no second copy. Both equal `torch.optim` step for step.

Where `update` writes `add(x, alpha=a)` or `lerp` for a sum, it repeats the operations of torch's
kernels in their order, so that a differentiated run and one in place agree to the bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.schedules import Schedule

State = dict[str, Tree]


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

    def learning_rate(self, step: int) -> float:
        """Return the base learning rate of the step after `step` steps."""
        ...

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return the gradient that is zero where the steps converge, from slope = dg/dtheta.

        `slope` itself where the optimizer adds nothing; differentiable.

        Raises:
            ValueError: the optimizer has no stationary point of the form gradient = 0, or not here.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Scheduled:
    """What all inner optimizers share: rate, schedule, clipping and parameter groups.

    Args:
        lr: learning rate, > 0 (0 freezes the inner level).
        weight_decay: coefficient of the decay, >= 0.
        schedule: factor on the learning rate by step, or `None` for a constant rate.
        clip_norm: largest Euclidean norm of the whole gradient, or `None`
            (as `torch.nn.utils.clip_grad_norm_`).
        groups: parameter groups, each `{"match": <regular expression on the name>}` with its own
            `lr` and `weight_decay`; the first match wins, the rest keep the values above.
    """

    lr: float
    weight_decay: float = 0.0
    schedule: Schedule | None = None
    clip_norm: float | None = None
    groups: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "lr >= 0", "weight_decay >= 0", "clip_norm > 0 or null")
        for group in self.groups:
            rates = {k: v for k, v in group.items() if k != "match"}
            if "match" not in group or not rates.keys() <= {"lr", "weight_decay"}:
                raise ValueError(
                    f"a group of {type(self).__name__} needs `match` and may set `lr` and "
                    f"`weight_decay`; got {dict(group)}."
                )
            try:
                re.compile(group["match"])
            except re.error as error:
                raise ValueError(
                    f"{type(self).__name__} needs a regular expression on names; "
                    f"{group['match']!r} is none: {error}."
                ) from error
            replace(self, groups=(), **rates)  # checks their ranges

    def learning_rate(self, step: int) -> float:
        """Return lr * schedule(step)."""
        return self.lr * (1.0 if self.schedule is None else self.schedule(step))

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return dg/dtheta + weight_decay * theta, from `slope` = dg/dtheta; differentiable.

        Momentum, Adam's moments and schedules do not move the point where it is zero. Cost without
        decay: none.

        Raises:
            ValueError: `slope` is clipped: with a decay, the steps then converge elsewhere.
        """
        groups = self._grouped(tuple(params), 0)
        if any(lr == 0 for _, lr, _ in groups) and any(lr for _, lr, _ in groups):
            raise ValueError(
                "a group with lr=0 never moves, while an implicit estimator solves for all "
                "parameters. Return those weights as the problem's `frozen`, or use "
                "estimator=unroll."
            )
        decays = {n: decay for names, _, decay in groups for n in names}
        if not any(decays.values()):
            return slope
        if self.clip_norm is not None and tree.norm(tree.detach(slope)) > self.clip_norm:
            raise ValueError(
                f"clip_norm={self.clip_norm} is active where the inner level is differentiated: "
                f"with weight_decay, clipped steps do not converge to a zero of a gradient. Raise "
                f"clip_norm, put the decay in inner_loss, or use estimator=unroll."
            )
        return {k: s.add(params[k], alpha=decays[k]) for k, s in slope.items()}

    def _grouped(self, names: Sequence[str], step: int) -> list[tuple[list[str], float, float]]:
        """Return (names, learning rate, weight decay) of every group that is not empty."""
        factor = 1.0 if self.schedule is None else self.schedule(step)
        rest, grouped = list(names), []
        for group in self.groups:
            hit = [n for n in rest if re.search(group["match"], n)]
            rest = [n for n in rest if n not in set(hit)]
            lr, decay = group.get("lr", self.lr), group.get("weight_decay", self.weight_decay)
            grouped.append((hit, lr * factor, decay))
        grouped.append((rest, self.lr * factor, self.weight_decay))
        return [g for g in grouped if g[0]]

    def _clipped(self, grads: Tree) -> Tree:
        """Return the gradients with their norm cut to `clip_norm`; differentiable."""
        if self.clip_norm is None:
            return grads
        # Not `clip_grad_norm_`, which works in place and off the graph.
        norms = torch.stack([safe_sqrt(torch.sum(g * g)) for g in grads.values()])
        coefficient = (self.clip_norm / (safe_sqrt(torch.sum(norms * norms)) + 1e-6)).clamp(max=1.0)
        return {k: g * coefficient for k, g in grads.items()}


def safe_sqrt(x: Tensor) -> Tensor:
    """Return sqrt(x) with derivative 0 at x = 0, where the usual one is infinite.

    A dead unit has a second moment of exactly 0; without this, the derivative through Adam is NaN.
    """
    positive = x > 0
    # The inner `where` keeps the infinite slope out: 0 * inf in the reverse pass would be NaN.
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), 0.0)


@dataclass(frozen=True, kw_only=True)
class SGD(_Scheduled):
    """Stochastic gradient descent with weight decay, momentum and Nesterov's form.

    d = g + weight_decay * theta;  b = momentum * b + d;
    theta <- theta - lr * (d + momentum * b if nesterov else b).
    Equal to `torch.optim.SGD` with dampening 0.

    Example:
        >>> SGD(lr=0.1).update({"w": torch.ones(1)}, {"w": torch.full((1,), 2.0)}, {}, 0)
        ({'w': tensor([0.8000])}, {})
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "0 <= momentum < 1")
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD with nesterov=true needs momentum > 0; got momentum=0.")

    def init(self, params: Tree) -> State:
        """Return a zero momentum buffer, or nothing without momentum."""
        return {"momentum": tree.zeros_like(params)} if self.momentum else {}

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters and state after one step; new tensors, differentiable."""
        grads, new, buffers = self._clipped(grads), {}, {}
        for names, lr, decay in self._grouped(tuple(params), step):
            for name in names:
                d = grads[name].add(params[name], alpha=decay) if decay else grads[name]
                if self.momentum:
                    buffers[name] = b = state["momentum"][name] * self.momentum + d
                    d = d.add(b, alpha=self.momentum) if self.nesterov else b
                new[name] = params[name].sub(d, alpha=lr)
        state = {"momentum": {k: buffers[k] for k in params}} if self.momentum else {}
        return {k: new[k] for k in params}, state

    @torch.no_grad()
    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step in place."""
        grads = self._clipped(grads)
        for names, lr, decay in self._grouped(tuple(params), step):
            moments: list[Tensor | None] = [None] * len(names)
            if self.momentum:
                moments = [state["momentum"][n] for n in names]
            sgd(
                [params[n] for n in names], [grads[n] for n in names], moments,
                has_sparse_grad=False, foreach=True, weight_decay=decay, momentum=self.momentum,
                lr=lr, dampening=0.0, nesterov=self.nesterov, maximize=False,
            )  # fmt: skip


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

    lr: float

    def __post_init__(self) -> None:
        check_ranges(self, "lr >= 0")

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

    def learning_rate(self, step: int) -> float:
        """Return lr."""
        return self.lr

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Raise a `ValueError`: steps of one length do not converge."""
        raise ValueError(
            "NormalizedSGD takes steps of one length, which do not converge. Use SGD for an "
            "implicit estimator, or estimator=unroll."
        )


@dataclass(frozen=True, kw_only=True)
class Adam(_Scheduled):
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

    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8

    decoupled = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "eps > 0")
        if not all(0 <= b < 1 for b in self.betas) or len(self.betas) != 2:
            raise ValueError(f"Adam needs two betas in [0, 1); got {list(self.betas)}.")

    def init(self, params: Tree) -> State:
        """Return zero first and second moments."""
        return {"mean": tree.zeros_like(params), "square": tree.zeros_like(params)}

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters and state after one step; new tensors, differentiable."""
        grads, new, means, squares = self._clipped(grads), {}, {}, {}
        (b1, b2), t = self.betas, step + 1
        for names, lr, decay in self._grouped(tuple(params), step):
            for name in names:
                g, theta = grads[name], params[name]
                if decay and self.decoupled:
                    theta = theta * (1 - lr * decay)
                elif decay:
                    g = g.add(theta, alpha=decay)
                means[name] = m = torch.lerp(state["mean"][name], g, 1 - b1)
                squares[name] = s = state["square"][name] * b2 + (1 - b2) * g * g
                denominator = safe_sqrt(s) / math.sqrt(1 - b2**t) + self.eps
                new[name] = theta - (lr / (1 - b1**t)) * m / denominator
        order = {k: new[k] for k in params}
        return order, {"mean": {k: means[k] for k in params},
                       "square": {k: squares[k] for k in params}}  # fmt: skip

    @torch.no_grad()
    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step in place."""
        grads = self._clipped(grads)
        for names, lr, decay in self._grouped(tuple(params), step):
            # The kernel counts up in the step tensors, one for each parameter: made for this call.
            adam(
                [params[n] for n in names], [grads[n] for n in names],
                [state["mean"][n] for n in names], [state["square"][n] for n in names], [],
                [torch.tensor(float(step)) for _ in names], foreach=True, amsgrad=False,
                beta1=self.betas[0], beta2=self.betas[1], lr=lr, weight_decay=decay, eps=self.eps,
                maximize=False, decoupled_weight_decay=self.decoupled,
            )  # fmt: skip


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

    weight_decay: float = 0.01

    decoupled = True

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return `slope`; raise a `ValueError` with a decay, which depends on Adam's moments.

        The steps converge to where dg/dtheta + weight_decay * (sqrt(v) + eps) * theta = 0, with a
        second moment v that the batches decide.
        """
        if any(decay for _, _, decay in self._grouped(tuple(params), 0)):
            raise ValueError(
                "AdamW's decoupled weight decay has no stationary point that a gradient states, "
                "which an implicit estimator solves for. Put the decay in inner_loss, use Adam "
                "(its weight_decay is part of the gradient) or weight_decay=0, or "
                "estimator=unroll."
            )
        return slope
