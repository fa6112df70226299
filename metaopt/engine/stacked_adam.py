"""Adam of R models in one batch, each of which may have started at another time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.engine.elementwise import Lists, OneByOne, safe_sqrt
from metaopt.engine.hyperparameters import Number, is_zero
from metaopt.engine.inner_optimizers import Adam
from metaopt.engine.protocols import Tree
from metaopt.engine.scheduled import Moments, State

AGE = "age"
"""The moment that counts the steps of each model."""


@dataclass(frozen=True, kw_only=True)
class StackedAdam(Adam):
    """Adam whose bias correction is that of each model: t counts the steps since its own start.

    The first axis of every parameter counts models. A model that is initialised again, with zero
    moments, at step t of a shared counter would take first steps that are
    (1 - b1) / sqrt(1 - b2) = 3.2 times as long as Adam's, since nothing corrects its moments. Here
    the moment `age` (R, 1, ...) is zeroed with the others. While all models are of one age, a step
    equals that of `Adam` to round-off.

    Example:
        >>> adam, params = StackedAdam(lr=0.1), {"w": torch.ones(2, 1)}
        >>> state = adam.init(params)
        >>> adam.update_(params, {"w": torch.full((2, 1), 2.0)}, state, 0)
        >>> params["w"].flatten()
        tensor([0.9000, 0.9000])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule is not None or self.clip_norm is not None:
            raise ValueError(
                "StackedAdam needs schedule=null and clip_norm=null: both are of one run, and its "
                "models have each their own steps."
            )

    def init(self, params: Tree) -> State:
        """Return zero moments, and ages 0."""
        for name, value in params.items():
            if not value.ndim:
                raise ValueError(f"StackedAdam needs a leading axis of models; {name!r} has none.")
        ages = {k: p.new_zeros(len(p), *[1] * (p.ndim - 1)) for k, p in params.items()}
        return {**super().init(params), AGE: ages}

    def stepped(
        self, ops: OneByOne, theta: Lists, grads: Lists, moments: Moments,
        lr: Number, decay: Number, step: int,
    ) -> tuple[Lists, Moments]:  # fmt: skip
        """Return parameters and moments of one group after a step; see `Scheduled`."""
        b1, b2 = self.betas
        if not is_zero(decay):
            grads = ops.new_sum(grads, theta, decay)
        ages = ops.add(moments[AGE], [torch.ones_like(t) for t in moments[AGE]])
        mean = ops.lerp(moments["mean"], grads, 1 - b1)
        square = ops.add_square(ops.mul(moments["square"], b2), grads, 1 - b2)
        update = [self._direction(m, v, age) for m, v, age in zip(mean, square, ages, strict=True)]
        return ops.add(theta, update, -lr), {"mean": mean, "square": square, AGE: ages}

    def _direction(self, mean: Tensor, square: Tensor, age: Tensor) -> Tensor:
        b1, b2 = self.betas
        t = age.detach()
        corrected = safe_sqrt(square) / torch.sqrt(1 - b2**t) + self.eps
        return mean / (1 - b1**t) / corrected

    def _differentiable(
        self, theta: Lists, grads: Lists, moments: Moments, lr: Number, decay: Number, step: int
    ) -> tuple[Lists, Moments]:
        return self.stepped(OneByOne(), theta, grads, moments, lr, decay, step)
