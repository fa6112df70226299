"""Adam on a matrix of parameters, one network a row, each with its own number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.ranges import check_ranges

BETAS, EPS = (0.9, 0.999), 1e-8
"""Torch's defaults."""


@tree.tagged("adam_moments")
class Moments(NamedTuple):
    """Adam's state for R networks: running means (R, n) of g and of g^2, steps taken (R, 1)."""

    mean: Tensor
    square: Tensor
    steps: Tensor


class AdamViews(NamedTuple):
    """Parameters and gradients (R, n), Adam's state, and views of the rows of all five tensors."""

    params: Tensor
    grad: Tensor
    state: Moments
    rows: list[list[Tensor]]


class StackedAdam:
    """Adam (Kingma and Ba, ICLR 2015) on a matrix (R, n), with one step count a row.

    A row that is masked out keeps its parameters, its moments and its count to the bit, and an
    unmasked row follows `torch.optim.Adam`. Where no row is masked out the step is torch's fused
    one, which rounds differently. (The inner optimizers of `metaopt.engine` count steps for all
    parameters at once, so that they cannot mask.)

    Args:
        lr: learning rate, >= 0.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        check_ranges(self, "lr >= 0")

    def init(self, params: Tensor) -> Moments:
        """Return the state before the first step."""
        zeros = torch.zeros_like(params)
        return Moments(zeros, torch.zeros_like(params), zeros.new_zeros(len(params), 1))

    def views(self, params: Tensor, grad: Tensor, state: Moments) -> AdamViews:
        """Return the tensors of `step_` with views of their rows, for many steps on end."""
        rows = [list(t.unbind()) for t in (params, grad, *state[:2], state.steps.squeeze(1))]
        return AdamViews(params, grad, state, rows)

    def step_(self, at: AdamViews, active: Tensor | None = None) -> None:
        """Take one step in place; the gradient is overwritten.

        Args:
            at: as `views` returned it.
            active: which rows take the step, (R, 1), numbers 0 or 1 of the dtype of the
                parameters; `None` for all, which is several times as fast.
        """
        b1, b2 = BETAS
        mean, square, steps = at.state
        if active is None:
            steps.add_(1)
            params, grads, means, squares, counts = at.rows
            torch._fused_adam_(
                params, grads, means, squares, [], counts, lr=self.lr, beta1=b1, beta2=b2,
                weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        # Every factor carries the mask, so that a masked row changes by exactly 0.
        steps.add_(active)
        count, grad = steps.clamp(min=1), at.grad
        mean.lerp_(grad, (1 - b1) * active)
        grad.square_()
        square.lerp_(grad, (1 - b2) * active)
        torch.add(square, 1e-30, out=grad)  # the root of 0 takes ten times as long as another
        unbias = torch.rsqrt(1 - torch.pow(b2, count))
        grad.sqrt_().mul_(unbias).add_(EPS)
        torch.div(mean, grad, out=grad)
        at.params.sub_(grad.mul_(self.lr * active / (1 - torch.pow(b1, count))))


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Treat numbers below 1.2e-38 as 0 inside the block, on a CPU that can.

    Moments of units that are dead decay to such numbers, with which arithmetic is many times
    slower.
    """
    before = float(torch.tensor(1e-39) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
