"""R small networks of one shape side by side: one matrix of parameters, one product per layer.

For networks this small a framework's time goes into launching operations, not into arithmetic.
Here R of them share every launch, and gradients are written out by hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm

aten = torch.ops.aten


class Layer(NamedTuple):
    """Views into a matrix of parameters: what one layer holds.

    Args:
        weight: (R, inputs, outputs).
        bias: (R, 1, outputs).
        gain, offset: scale and shift after layer normalisation, (R, 1, outputs), or `None`.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor | None
    offset: Tensor | None


class Pass(NamedTuple):
    """What a forward pass leaves for the backward one, by layer.

    Args:
        inputs: input of each layer.
        normal: of each hidden layer with layer normalisation: (what came in, mean, 1 / deviation).
    """

    inputs: list[Tensor]
    normal: list[tuple[Tensor, Tensor, Tensor]]


class StackedMLP:
    """R fully connected networks with ReLU, each with its own parameters and its own inputs.

    Args:
        sizes: inputs, hidden widths, outputs; at least two numbers >= 1.
        normalise: put layer normalisation (Ba, Kiros and Hinton, 2016) before each ReLU.

    Attributes:
        size: number n of parameters of one network.
    """

    def __init__(self, sizes: Sequence[int], normalise: bool = False) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"StackedMLP needs two or more sizes >= 1; got {list(sizes)}.")
        self.sizes, self.normalise = tuple(sizes), normalise
        hidden = sum(sizes[1:-1])
        self.size = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
        self.size += 2 * hidden if normalise else 0

    def init(self, runs: int, draw: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return parameters (R, n) on the device of `draw`.

        Weights and biases are uniform in +-1 / sqrt(inputs), as in `torch.nn.Linear`.
        """
        flat = torch.rand(runs, self.size, generator=draw, dtype=dtype, device=draw.device)
        for layer in self.layers(flat.mul_(2).sub_(1)):
            bound = 1 / math.sqrt(layer.weight.shape[1])
            layer.weight.mul_(bound)
            layer.bias.mul_(bound)
            if layer.gain is not None and layer.offset is not None:
                layer.gain.fill_(1.0)
                layer.offset.fill_(0.0)
        return flat

    def layers(self, flat: Tensor) -> list[Layer]:
        """Return views into parameters, or into a gradient, (R, n)."""
        runs, at, found = len(flat), 0, []

        def take(*shape: int) -> Tensor:
            nonlocal at
            start, at = at, at + math.prod(shape)
            return flat[:, start:at].view(runs, *shape)

        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(self.sizes)):
            weight, bias = take(fan_in, fan_out), take(1, fan_out)
            inner = self.normalise and i < len(self.sizes) - 2
            found.append(
                Layer(
                    weight, bias, *((take(1, fan_out), take(1, fan_out)) if inner else (None,) * 2)
                )
            )
        return found

    def forward(self, layers: Sequence[Layer], x: Tensor) -> tuple[Tensor, Pass]:
        """Return outputs (R, B, o) of inputs (R, B, i), and what `backward` needs."""
        kept = Pass([], [])
        for layer in layers[:-1]:
            kept.inputs.append(x)
            x = torch.baddbmm(layer.bias, x, layer.weight)
            if layer.gain is not None and layer.offset is not None:
                normal, mean, rate = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
                kept.normal.append((x, mean, rate))
                x = torch.addcmul(layer.offset, normal, layer.gain)
            x = x.relu_()
        kept.inputs.append(x)
        return torch.baddbmm(layers[-1].bias, x, layers[-1].weight), kept

    def __call__(self, layers: Sequence[Layer], x: Tensor) -> Tensor:
        """Return outputs (R, B, o) of inputs (R, B, i)."""
        for layer in layers[:-1]:
            x = torch.baddbmm(layer.bias, x, layer.weight)
            if layer.gain is not None and layer.offset is not None:
                x = torch.addcmul(layer.offset, layer_norm(x, x.shape[-1:]), layer.gain)
            x = x.relu_()
        return torch.baddbmm(layers[-1].bias, x, layers[-1].weight)

    def backward(
        self, layers: Sequence[Layer], kept: Pass, slope: Tensor, into: Sequence[Layer]
    ) -> None:
        """Write the gradient of a sum over runs into the views `into` of a matrix (R, n).

        Args:
            layers: as in `forward`.
            kept: what it returned beside the outputs.
            slope: derivative with respect to the outputs, (R, B, o).
            into: `layers` of the gradient.
        """
        for i in range(len(layers) - 1, -1, -1):
            x = kept.inputs[i]
            into[i].weight.copy_(torch.bmm(x.mT, slope))
            torch.sum(slope, 1, keepdim=True, out=into[i].bias)
            if i == 0:
                return
            slope = torch.bmm(slope, layers[i].weight.mT)
            slope = aten.threshold_backward(slope, x, 0)
            below = layers[i - 1]
            if below.gain is not None:
                slope = _through(below.gain, kept.normal[i - 1], slope, into[i - 1])


class Moments(NamedTuple):
    """Adam's state for R networks: running means (R, n) of g and of g^2, steps taken (R, 1)."""

    mean: Tensor
    square: Tensor
    steps: Tensor


torch.serialization.add_safe_globals([Moments])


class Descent(NamedTuple):
    """Parameters and gradients (R, n), Adam's state, and views of the rows of all five."""

    flat: Tensor
    grad: Tensor
    state: Moments
    rows: list[list[Tensor]]


class StackedAdam:
    """Adam (Kingma and Ba, ICLR 2015) on a matrix (R, n), with one step count a row.

    A row that is masked out keeps its parameters, its moments and its count to the bit, and an
    unmasked row follows `torch.optim.Adam`. Where no row is masked out the step is torch's fused
    one, which rounds differently.

    Args:
        lr: learning rate, >= 0.
        betas: decay of the two running means, each in [0, 1).
        eps: added to the root of the second mean, > 0.
    """

    def __init__(self, lr: float, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        if not lr >= 0 or len(betas) != 2 or not all(0 <= b < 1 for b in betas) or not eps > 0:
            raise ValueError(
                f"StackedAdam needs lr >= 0, two betas in [0, 1) and eps > 0; got lr={lr}, "
                f"betas={list(betas)}, eps={eps}."
            )
        self.lr, self.betas, self.eps = lr, tuple(betas), eps

    def init(self, flat: Tensor) -> Moments:
        """Return the state before the first step."""
        zeros = torch.zeros_like(flat)
        return Moments(zeros, torch.zeros_like(flat), zeros.new_zeros(len(flat), 1))

    def open(self, flat: Tensor, grad: Tensor, state: Moments) -> Descent:
        """Return the tensors of `step_` with views of their rows, for many steps on end."""
        rows = [list(t.unbind()) for t in (flat, grad, *state[:2], state.steps.squeeze(1))]
        return Descent(flat, grad, state, rows)

    def step_(self, at: Descent, active: Tensor | None = None) -> None:
        """Take one step in place; the gradient is used up.

        Args:
            at: as `open` returned it.
            active: which rows take the step, (R, 1), numbers 0 or 1 of the dtype of the
                parameters; `None` for all, which is several times as fast.
        """
        b1, b2 = self.betas
        mean, square, steps = at.state
        if active is None:
            steps.add_(1)
            params, grads, means, squares, counts = at.rows
            torch._fused_adam_(
                params, grads, means, squares, [], counts, lr=self.lr, beta1=b1, beta2=b2,
                weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        steps.add_(active)
        taken, grad = steps.clamp(min=1), at.grad
        mean.lerp_(grad, (1 - b1) * active)
        grad.square_()
        square.lerp_(grad, (1 - b2) * active)
        torch.add(square, 1e-30, out=grad)  # roots of 0 take ten times as long as others
        unbias = torch.rsqrt(1 - torch.pow(b2, taken))
        grad.sqrt_().mul_(unbias).add_(self.eps)
        torch.div(mean, grad, out=grad)
        at.flat.sub_(grad.mul_(self.lr * active / (1 - torch.pow(b1, taken))))


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Treat numbers below 1.2e-38 as 0 inside the block, on a processor that can.

    Moments of units that are dead decay to such numbers, with which arithmetic is many times
    slower.
    """
    before = float(torch.tensor(1e-39) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _through(
    gain: Tensor, kept: tuple[Tensor, Tensor, Tensor], slope: Tensor, into: Layer
) -> Tensor:
    """Return the derivative before layer normalisation, given the one after it."""
    raw, mean, rate = kept
    torch.sum(slope * (raw - mean) * rate, 1, keepdim=True, out=into.gain)
    torch.sum(slope, 1, keepdim=True, out=into.offset)
    found, _, _ = aten.native_layer_norm_backward(
        slope * gain, raw, raw.shape[-1:], mean, rate, None, None, [True, False, False]
    )
    return found
