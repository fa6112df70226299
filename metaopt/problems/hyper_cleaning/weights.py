"""What a training example counts: the sigmoid of a logit of its own, or a network of its loss."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.nn.mlp import MLP
from metaopt.nn.network import Network


class Weights(Protocol):
    """Weights of training examples as a function of phi."""

    def init(self, count: int, generator: Generator) -> Tree:
        """Return the first phi, for `count` training examples."""
        ...

    def __call__(self, outer: Tree, rows: Tensor, losses: Tensor) -> Tensor:
        """Return the weights (B,) of the examples `rows` (B,), whose losses are `losses` (B,)."""
        ...


class LogitTable:
    """w_i = sigmoid(phi_i), with phi = `outer["logit"]`, (n,).

    Under plain SGD outer rates are in units of n: dF/dphi_i carries the 1/n of the mean in g, so
    that a rate of 0.01 leaves weights where they start. Adam divides that out.

    Args:
        start: first logit. 2 is a weight of .88. At 0, the threshold of F1, the sign of the first
            hypergradients decides F1 while no weight has moved.
    """

    def __init__(self, start: float = 2.0) -> None:
        self.start = start
        check_ranges(self, "start")

    def init(self, count: int, generator: Generator) -> Tree:
        """Return equal logits."""
        return {"logit": torch.full((count,), float(self.start))}

    def __call__(self, outer: Tree, rows: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of examples, (B,)."""
        return outer["logit"][rows].sigmoid()


class MetaWeightNet:
    """w_i = v_i / mean v, v_i = sigmoid(V(l_i; phi)), a network of the example's loss.

    One hidden layer of ReLU. The loss goes in without its derivative, and the mean is over the
    batch, both as in the paper. Without the mean the network would learn to train faster first,
    with all weights at 1, where the sigmoid is flat. Weights start at 1.

    Args:
        hidden: units, >= 1.

    Reference: Shu et al., Meta-Weight-Net, NeurIPS 2019.
    """

    def __init__(self, hidden: int = 100) -> None:
        self.hidden = hidden
        check_ranges(self, "hidden >= 1")
        self.network = Network(lambda: MLP((1,), 1, (hidden,)))

    def init(self, count: int, generator: Generator) -> Tree:
        """Return weights and biases, drawn as `torch.nn.Linear` does; those of the output are 0."""
        phi = self.network.init(generator)
        return phi | {name: torch.zeros_like(phi[name]) for name in self.network.params[-2:]}

    def __call__(self, outer: Tree, rows: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of examples, (B,)."""
        weights = self.network.train(outer, losses.detach()[:, None]).squeeze(1).sigmoid()
        return weights / weights.mean()
