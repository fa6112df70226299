"""A small head on the outputs of a fixed network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaopt.nn import MLP, Architecture


class Reduced(nn.Module):
    """The teacher of Reduced Meta Pseudo Labels: a fixed network and a trained correction.

    logits(x) = log p(x) + head(p(x)),  p = softmax(base(x)).

    The head's last layer starts at zero, so that the first labels are the base's own. `base` is
    frozen: `Network` counts its weights as buffers, and pretraining trains it.

    Args:
        shape: shape of one input.
        classes: number of outputs.
        base: architecture of the fixed network.
        widths: hidden layers of the head.

    Reference: Pham et al., Meta Pseudo Labels, CVPR 2021, section 4 (memory of a large teacher).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        base: Architecture,
        widths: Sequence[int] = (32,),
    ) -> None:
        super().__init__()
        self.base = base(shape, classes).requires_grad_(False)
        self.head = MLP([classes], classes, widths)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> Reduced:
        """Set the mode; the base is in training mode only where it has been unfrozen."""
        super().train(mode)
        self.base.train(mode and any(p.requires_grad for p in self.base.parameters()))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits = torch.log_softmax(self.base(x), -1)
        result: Tensor = logits + self.head(logits.exp())
        return result
