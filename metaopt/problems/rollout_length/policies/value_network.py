"""Action values as a small network in one flat vector, with its own Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.adam import adam

from metaopt.engine.random import generator

Layers = list[tuple[Tensor, Tensor]]


@final
class ValueNetwork:
    """Q(s, .): ReLU layers and a linear one, a frozen copy of it, and Adam on the squared error.

    Weights are [in, out] views into one vector, so that an update is a handful of matrix products
    and one Adam step; they start as those of `torch.nn.Linear`.

    Args:
        sizes: number of features, of hidden units layer by layer, of actions.
        lr: learning rate of Adam, > 0.
        key: what the first weights are drawn by.
    """

    def __init__(self, sizes: Sequence[int], lr: float, key: int) -> None:
        self.sizes, self.lr = list(sizes), lr
        draw, parts = generator(key), []
        for fan_in, fan_out in pairwise(self.sizes):
            uniform = torch.rand(fan_in * fan_out + fan_out, generator=draw)
            parts.append((2 * uniform - 1) / math.sqrt(fan_in))
        self._theta = torch.cat(parts)
        self._frozen = self._theta.clone()
        self._gradient = torch.zeros_like(self._theta)
        self._mean = torch.zeros_like(self._theta)
        self._square = torch.zeros_like(self._theta)
        self._updates = torch.zeros(())
        vectors = (self._theta, self._frozen, self._gradient)
        self._layers, self._frozen_layers, self._slots = map(self._views, vectors)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the values of all actions [..., A] in states [..., F]."""
        return _values(self._layers, states)

    def frozen(self, states: Tensor) -> Tensor:
        """Return the values by the frozen copy."""
        return _values(self._frozen_layers, states)

    def freeze(self) -> None:
        """Copy the network into the frozen one."""
        self._frozen.copy_(self._theta)

    def descend(self, states: Tensor, actions: Tensor, targets: Tensor) -> None:
        """Take one Adam step on the mean over rows of (Q(s, a) - target)^2.

        Args:
            states: [B, F].
            actions: long [B].
            targets: [B].
        """
        layers, slots = self._layers, self._slots
        inputs = [states]
        for weight, bias in layers[:-1]:
            inputs.append(torch.addmm(bias, inputs[-1], weight).relu_())
        weight, bias = layers[-1]
        values = torch.addmm(bias, inputs[-1], weight)
        chosen = actions[:, None]
        errors = values.gather(1, chosen) - targets[:, None]
        slope = torch.zeros_like(values).scatter_(1, chosen, errors * (2 / len(states)))
        for k in reversed(range(len(layers))):
            torch.mm(inputs[k].T, slope, out=slots[k][0])
            torch.sum(slope, 0, out=slots[k][1])
            if k:
                slope = (slope @ layers[k][0].T) * (inputs[k] > 0)
        adam(
            [self._theta], [self._gradient], [self._mean], [self._square], [], [self._updates],
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=self.lr, weight_decay=0.0,
            eps=1e-8, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the frozen ones, and Adam's moments and count."""
        return {
            "sizes": self.sizes,
            "theta": self._theta,
            "frozen": self._frozen,
            "mean": self._mean,
            "square": self._square,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is of a network of other sizes.
        """
        if list(state["sizes"]) != self.sizes:
            raise ValueError(
                f"the checkpoint's network has sizes {state['sizes']}, this one {self.sizes}; "
                "resume with the widths and the actions of the checkpoint."
            )
        for name in ("theta", "frozen", "mean", "square", "updates"):
            getattr(self, f"_{name}").copy_(state[name])

    def _views(self, vector: Tensor) -> Layers:
        layers, at = [], 0
        for fan_in, fan_out in pairwise(self.sizes):
            weight = vector[at : at + fan_in * fan_out].view(fan_in, fan_out)
            at += fan_in * fan_out + fan_out
            layers.append((weight, vector[at - fan_out : at]))
        return layers


def _values(layers: Layers, states: Tensor) -> Tensor:
    *hidden, (weight, bias) = layers
    x = states.reshape(-1, states.shape[-1])
    for w, b in hidden:
        x = torch.addmm(b, x, w).relu_()
    return torch.addmm(bias, x, weight).view(*states.shape[:-1], -1)
