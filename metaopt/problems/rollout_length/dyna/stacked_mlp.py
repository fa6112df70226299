"""R small networks of one shape, batched: one matrix of parameters, one product per layer.

For networks this small a framework's time goes into launching operations, not into arithmetic.
Here R of them share every launch, and gradients are written out by hand: autograd's bookkeeping
costs several times what it records.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

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
            tape: what it returned beside the outputs.
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
