"""R small networks of one shape, batched, and Adam for each: one launch serves all of them.

For networks this small a framework's time goes into launching operations, not into arithmetic.
Here R of them share every launch, and gradients are written out by hand: autograd's bookkeeping
costs several times what it records.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.ranges import check_ranges

aten = torch.ops.aten

BETAS, EPS = (0.9, 0.999), 1e-8
"""Adam's, torch's defaults."""


class Layer(NamedTuple):
    """Views into a matrix of parameters: what one layer holds.

    Args:
        weight: (R, inputs, outputs).
        bias: (R, 1, outputs).
        gain, offset: scale and shift after layer normalisation, (R, 1, outputs), or `None`.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor | None = None
    offset: Tensor | None = None


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
        start, layers = 0, []
        for n, (fan_in, fan_out) in enumerate(itertools.pairwise(self.sizes)):
            hidden = n < len(self.sizes) - 2
            shapes = [(fan_in, fan_out), *[(1, fan_out)] * (3 if self.normalise and hidden else 1)]
            views = []
            for i, o in shapes:
                views.append(flat[:, start : start + i * o].view(-1, i, o))
                start += i * o
            layers.append(Layer(*views))
        return layers

    def forward(self, layers: Sequence[Layer], x: Tensor) -> tuple[Tensor, Pass]:
        """Return outputs (R, B, o) of inputs (R, B, i), and what `backward` needs."""
        tape = Pass([], [])
        for layer in layers[:-1]:
            tape.inputs.append(x)
            x = torch.baddbmm(layer.bias, x, layer.weight)
            if layer.gain is not None and layer.offset is not None:
                normal, mean, rate = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
                tape.normal.append((x, mean, rate))
                x = torch.addcmul(layer.offset, normal, layer.gain)
            x = x.relu_()  # in place: nothing needs what came in, only its sign
        tape.inputs.append(x)
        return torch.baddbmm(layers[-1].bias, x, layers[-1].weight), tape

    def __call__(self, layers: Sequence[Layer], x: Tensor) -> Tensor:
        """Return outputs (R, B, o) of inputs (R, B, i)."""
        return self.forward(layers, x)[0]

    def backward(
        self, layers: Sequence[Layer], tape: Pass, slope: Tensor, into: Sequence[Layer]
    ) -> None:
        """Write the gradient of a sum over runs into the views `into` of a matrix (R, n).

        Args:
            layers: as in `forward`.
            tape: what it returned in addition to the outputs.
            slope: derivative with respect to the outputs, (R, B, o).
            into: `layers` of the gradient.
        """
        for i in range(len(layers) - 1, -1, -1):
            x = tape.inputs[i]
            into[i].weight.copy_(torch.bmm(x.mT, slope))
            torch.sum(slope, 1, keepdim=True, out=into[i].bias)
            if i == 0:
                return
            slope = torch.bmm(slope, layers[i].weight.mT)
            slope = aten.threshold_backward(slope, x, 0)  # one launch; a mask would take two
            below = layers[i - 1]
            if below.gain is not None:
                slope = _through_norm(below.gain, tape.normal[i - 1], slope, into[i - 1])


def _through_norm(
    gain: Tensor, tape: tuple[Tensor, Tensor, Tensor], slope: Tensor, into: Layer
) -> Tensor:
    """Return the derivative before layer normalisation, given the one after it."""
    raw, mean, rate = tape
    torch.sum(slope * (raw - mean) * rate, 1, keepdim=True, out=into.gain)
    torch.sum(slope, 1, keepdim=True, out=into.offset)
    before, _, _ = aten.native_layer_norm_backward(
        slope * gain, raw, raw.shape[-1:], mean, rate, None, None, [True, False, False]
    )
    result: Tensor = before
    return result


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
