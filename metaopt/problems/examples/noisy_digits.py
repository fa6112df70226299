"""Digits, some with wrong labels, as a task of domain reweighting: small, smooth, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_choices, check_ranges

PIXELS, CLASSES = 64, 10

Activation = Literal["tanh", "relu"]


class NoisyDigits:
    """A perceptron of one hidden layer on digits; the domains are right and wrong labels.

    Data: the digits of scikit-learn, `count` to train on, `clean` to weigh them by, others to test.
    Everything is in float64.

    Args:
        count: training images.
        clean: meta images, whose labels are right.
        noise: probability that a training label is another class, in (0, 1).
        hidden: hidden units.
        activation: tanh, or relu, whose kinks make training less smooth.
        logit_scale: what the logits are multiplied by, > 0.
        seed: of the split and the noise.
    """

    domains = ("right", "wrong")
    resplit = 0.0

    def __init__(
        self, count: int = 400, clean: int = 100, noise: float = 0.2, hidden: int = 32,
        activation: Activation = "tanh", logit_scale: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        from sklearn.datasets import load_digits

        self.noise, self.hidden, self.activation = noise, hidden, activation
        self.count, self.clean, self.seed, self.logit_scale = count, clean, seed, logit_scale
        check_ranges(
            self, "0 < noise < 1", "hidden >= 1", "count >= 2", "clean >= 1", "logit_scale > 0"
        )
        check_choices(self, activation=get_args(Activation))
        draw = torch.Generator().manual_seed(seed)
        x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
        if count + clean >= len(x):
            raise ValueError(
                f"count={count} and clean={clean} leave none of the {len(x)} digits to test on."
            )
        order = torch.randperm(len(x), generator=draw)
        x, y = x[order].double() / 16, y[order]
        wrong = torch.rand(count, generator=draw) < noise
        other = (y[:count] + torch.randint(1, CLASSES, (count,), generator=draw)) % CLASSES
        end = count + clean
        self.x, self.y = x[:count], torch.where(wrong, other, y[:count])
        self.meta_x, self.meta_y = x[count:end], y[count:end]
        self.test_x, self.test_y = x[end:], y[end:]
        self.domain, self.quality = wrong.long(), torch.tensor([1.0, 0.0])
        self.meta_rows = clean
        self.meta_kinds = self.meta_y  # a meta batch of `clean` then holds each image once

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return weights and biases, uniform in +-1 / sqrt(inputs) as in `torch.nn.Linear`."""

        def uniform(*shape: int, inputs: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
            return (2 * drawn - 1) / math.sqrt(inputs)

        h = self.hidden
        params = {
            "hidden.weight": uniform(h, PIXELS, inputs=PIXELS),
            "hidden.bias": uniform(h, inputs=PIXELS),
            "weight": uniform(CLASSES, h, inputs=h),
            "bias": uniform(CLASSES, inputs=h),
        }
        return params, {}

    def row_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the cross-entropy of training images, (B,)."""
        return F.cross_entropy(self._logits(tensors, self.x[rows]), self.y[rows], reduction="none")

    def meta_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the cross-entropy of clean images, (B,)."""
        logits = self._logits(tensors, self.meta_x[rows])
        return F.cross_entropy(logits, self.meta_y[rows], reduction="none")

    def metrics(self, tensors: Tree) -> Mapping[str, float | Tensor]:
        """Return loss and accuracy on test images."""
        logits = self._logits(tensors, self.test_x)
        right = logits.argmax(-1) == self.test_y
        return {
            "test_loss": F.cross_entropy(logits, self.test_y),
            "test_accuracy": right.double().mean(),
        }

    def _logits(self, tensors: Tree, x: Tensor) -> Tensor:
        hidden = F.linear(x, tensors["hidden.weight"], tensors["hidden.bias"])
        hidden = torch.tanh(hidden) if self.activation == "tanh" else torch.relu(hidden)
        return self.logit_scale * F.linear(hidden, tensors["weight"], tensors["bias"])
