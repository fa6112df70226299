"""Networks that score a text from its features; leading axes of parameters count raters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import gelu

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges


class Network(Protocol):
    """s = r_phi(x), a number for each text.

    Attributes:
        kind: name under which a saved rater finds the class again.
        settings: arguments that make it again, as JSON has them.
        reads_integers: whether x holds numbers of symbols.
    """

    kind: str
    settings: Mapping[str, Any]
    reads_integers: bool

    def init(self, features: Tensor, generator: Generator) -> Tree:
        """Return parameters for features (n, ...)."""
        ...

    def __call__(self, phi: Tree, features: Tensor) -> Tensor:
        """Return scores (..., B) of features (B, ...), with the leading axes of phi."""
        ...


class MLP:
    """One hidden layer with tanh.

    Args:
        hidden: units, >= 1.
    """

    kind: str = "mlp"
    reads_integers: bool = False

    def __init__(self, hidden: int = 32) -> None:
        self.hidden = hidden
        check_ranges(self, "hidden >= 1")
        self.settings: Mapping[str, Any] = {"hidden": hidden}

    def init(self, features: Tensor, generator: Generator) -> Tree:
        """Return weights uniform in +-1 / sqrt(inputs); all scores are 0, so that weights are 1."""
        inputs = features.shape[-1]
        return {
            "hidden.weight": _uniform((inputs, self.hidden), generator),
            "hidden.bias": torch.zeros(1, self.hidden),
            "weight": torch.zeros(self.hidden, 1),
        }

    def __call__(self, phi: Tree, features: Tensor) -> Tensor:
        """Return scores (..., B)."""
        hidden = torch.tanh(features @ phi["hidden.weight"] + phi["hidden.bias"])
        return (hidden @ phi["weight"]).squeeze(-1)


class Transformer:
    """A small bidirectional transformer: embedded symbols and places, attention, mean, one number.

    Layers normalise their input by its root mean square (Zhang and Sennrich, NeurIPS 2019). Symbol
    0 is padding.

    Args:
        width: of the states, a multiple of heads.
        layers, heads: >= 1.
        symbols: size of the alphabet, 257 for bytes and padding.
    """

    kind: str = "transformer"
    reads_integers: bool = True

    def __init__(
        self, width: int = 32, layers: int = 1, heads: int = 2, symbols: int = 257
    ) -> None:
        self.width, self.layers, self.heads, self.symbols = width, layers, heads, symbols
        check_ranges(self, "layers >= 1", "heads >= 1", "symbols >= 2", "width >= heads")
        if width % heads:
            raise ValueError(
                f"Transformer needs a width that heads divide; got width={width}, heads={heads}."
            )
        self.settings: Mapping[str, Any] = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "symbols": symbols,
        }

    def init(self, features: Tensor, generator: Generator) -> Tree:
        """Return weights uniform in +-1 / sqrt(inputs); all scores are 0, so that weights are 1."""
        w = self.width
        phi = {
            "symbols": torch.randn(self.symbols, w, generator=generator),
            "places": torch.randn(features.shape[-1], w, generator=generator),
        }
        for k in range(self.layers):
            phi |= {
                f"{k}.attend": _uniform((w, 3 * w), generator),
                f"{k}.mix": _uniform((w, w), generator),
                f"{k}.up": _uniform((w, 2 * w), generator),
                f"{k}.down": _uniform((2 * w, w), generator),
            }
        return phi | {"weight": torch.zeros(w, 1)}

    def __call__(self, phi: Tree, features: Tensor) -> Tensor:
        """Return scores (..., B)."""
        present = features > 0
        present = torch.cat([torch.ones_like(present[:, :1]), present[:, 1:]], 1)  # of "", too
        states = phi["symbols"][..., features, :] + phi["places"][..., None, :, :]
        # Weights have the leading axes of phi, states those and (B, L).
        weights = {k: v[..., None, :, :] for k, v in phi.items()}
        for k in range(self.layers):
            read = _normalised(states) @ weights[f"{k}.attend"]
            states = states + self._attention(read, present) @ weights[f"{k}.mix"]
            up = gelu(_normalised(states) @ weights[f"{k}.up"])
            states = states + up @ weights[f"{k}.down"]
        mask = present[..., None].to(states)
        mean = (_normalised(states) * mask).sum(-2) / mask.sum(-2)
        return (mean @ phi["weight"]).squeeze(-1)

    def _attention(self, read: Tensor, present: Tensor) -> Tensor:
        """Return the mean of values by attention, (..., B, L, width)."""
        split = read.unflatten(-1, (3, self.heads, self.width // self.heads))
        query, key, value = split.movedim(-3, 0).transpose(-2, -3)  # (..., B, heads, L, size)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        logits = logits.masked_fill(~present[:, None, None, :], -torch.inf)
        mixed: Tensor = torch.softmax(logits, -1) @ value
        return mixed.transpose(-2, -3).flatten(-2)


def _normalised(states: Tensor) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _uniform(shape: tuple[int, int], generator: Generator) -> Tensor:
    drawn = torch.rand(shape, generator=generator)
    return (2 * drawn - 1) / math.sqrt(shape[0])


NETWORKS: dict[str, Callable[..., Network]] = {"mlp": MLP, "transformer": Transformer}
"""The classes by their `kind`."""
