"""Rewards of frozen features: R small networks, batched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
}


class FeatureReward:
    """R fully connected reward models on features, trained at once: seeds, or an ensemble.

    r_i(x) = w_i . f_i(x) + b_i for i = 1..R, with f_i the last hidden layer. Parameters are a dict
    of tensors with a leading axis R, so one product per layer serves all models, a sum of their
    losses trains each on its own, and any transformation of torch.func applies.

    Args:
        inputs: number d of features, >= 1.
        widths: sizes of the hidden layers, each >= 1; empty for a linear model.
        activation: tanh, relu or gelu.
        dropout: probability of dropping a hidden unit, in [0, 1).

    Raises:
        ValueError: one of these is not met.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int] = (64, 64),
        activation: str = "tanh",
        dropout: float = 0.0,
    ) -> None:
        if min((inputs, *widths)) < 1:
            raise ValueError(
                f"FeatureReward needs inputs >= 1 and widths >= 1; got {inputs} and {list(widths)}."
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"FeatureReward needs activation in {list(ACTIVATIONS)}; got {activation!r}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"FeatureReward needs 0 <= dropout < 1; got {dropout}.")
        self.sizes = (inputs, *widths, 1)
        self.activation, self.dropout = activation, dropout

    def init(self, generators: Sequence[Generator]) -> dict[str, Tensor]:
        """Return parameters {"0.weight": (R, inputs, outputs), "0.bias": (R, 1, outputs), ...}.

        Model i is drawn from generator i alone, so it does not depend on the others. Weights
        and biases are uniform in +-1 / sqrt(inputs), as in `torch.nn.Linear`.
        """
        drawn: dict[str, list[Tensor]] = {}
        for generator in generators:  # one after the other: no model depends on the others
            for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(self.sizes)):
                for name, rows in (("weight", fan_in), ("bias", 1)):
                    value = torch.rand(rows, fan_out, generator=generator, device=generator.device)
                    value = (2 * value - 1) / math.sqrt(fan_in)
                    drawn.setdefault(f"{layer}.{name}", []).append(value)
        return {name: torch.stack(values) for name, values in drawn.items()}

    def features(
        self, params: Mapping[str, Tensor], x: Tensor, drop: Generator | None = None
    ) -> Tensor:
        """Return the last hidden layer f(x), (R, ..., widths[-1]).

        Args:
            params: as `init` returns them.
            x: features (B, d), which all models read, or (R, ..., d), to each its own.
            drop: draws the dropped units; `None` to drop none.

        Raises:
            ValueError: x has another shape.
        """
        runs = len(params["0.weight"])
        if x.shape[-1] != self.sizes[0] or x.ndim < 2 or (x.ndim > 2 and len(x) != runs):
            raise ValueError(
                f"x must be (B, {self.sizes[0]}) or ({runs}, ..., {self.sizes[0]}); got "
                f"{tuple(x.shape)}."
            )
        middle = x.shape[:-1] if x.ndim == 2 else x.shape[1:-1]
        hidden = x.expand(runs, *x.shape) if x.ndim == 2 else x.reshape(runs, -1, x.shape[-1])
        for layer in range(len(self.sizes) - 2):
            hidden = ACTIVATIONS[self.activation](self._linear(params, layer, hidden))
            if drop is not None and self.dropout:
                mask = torch.rand(hidden.shape, generator=drop, device=drop.device) >= self.dropout
                hidden = hidden * mask / (1 - self.dropout)
        return hidden.reshape(runs, *middle, hidden.shape[-1])

    def rewards(
        self, params: Mapping[str, Tensor], x: Tensor, drop: Generator | None = None
    ) -> Tensor:
        """Return the rewards (R, B), or (R, ...); see `features`."""
        hidden = self.features(params, x, drop)
        flat = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        return self._linear(params, len(self.sizes) - 2, flat).reshape(hidden.shape[:-1])

    def _linear(self, params: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
        return torch.baddbmm(params[f"{layer}.bias"], x, params[f"{layer}.weight"])
