"""Fully connected networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Args:
        shape: shape of one input; it is flattened.
        classes: number of outputs.
        widths: sizes of the hidden layers; empty for a linear model.
        activation: relu, sigmoid, tanh or gelu.
        init_range: draw every weight and bias uniformly from [-init_range, init_range], or `None`
            for torch's default.
        dropout: probability of dropping a hidden unit, in [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (32, 32),
        activation: str = "relu",
        init_range: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP needs activation in {list(ACTIVATIONS)}; got {activation!r}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"MLP needs 0 <= dropout < 1; got {dropout}.")
        sizes = [math.prod(shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-1], classes))
        if init_range is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init_range, init_range)
