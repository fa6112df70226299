"""Find mislabelled digits: one weight per training image, learned from a few clean ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_ranges

Images = tuple[Tensor, Tensor]
"""Pixels in [0, 1], (B, 64), and classes, (B,)."""


class LabelCleaning(GradientProblem):
    """g = mean of sigmoid(phi_i) * loss of image i; F = mean loss of the clean images.

    Symbols: phi = `outer["logit"]`, (1000,); theta = weight and bias of a linear classifier. Data:
    the digits of scikit-learn, 1,000 to train on, 100 clean ones, 697 to test.

    Args:
        inner_optimizer: how theta is stepped.
        noise: probability that a training label is wrong (the next class), in [0, 1].
        seed: of the split and the noise.

    Example:
        >>> from metaopt import SGD
        >>> problem = LabelCleaning(SGD(lr=1.0), noise=0.4)

    Reference: Franceschi et al., Forward and Reverse Gradient-Based Hyperparameter Optimization,
    ICML 2017 (data hyper-cleaning).
    """

    def __init__(self, inner_optimizer: InnerOptimizer, noise: float = 0.4, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        self.inner_optimizer, self.noise = inner_optimizer, noise
        check_ranges(self, "0 <= noise <= 1")
        draw = torch.Generator().manual_seed(seed)
        x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
        order = torch.randperm(len(x), generator=draw)
        x, y = x[order].float() / 16, y[order]
        self.wrong = torch.rand(1000, generator=draw) < noise
        labels = torch.where(self.wrong, (y[:1000] + 1) % 10, y[:1000])
        self.train: Images = (x[:1000], labels)
        self.clean: Images = (x[1000:1100], y[1000:1100])
        self.test: Images = (x[1100:], y[1100:])

    def init_outer(self, generator: Generator) -> Tree:
        """Return equal weights."""
        return {"logit": torch.zeros(1000)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return a classifier that finds all classes equally likely."""
        return {"weight": torch.zeros(10, 64), "bias": torch.zeros(10)}

    def inner_batch(self, draw: Draw) -> Images:
        """Return all training images."""
        return self.train

    def outer_batch(self, draw: Draw) -> Images:
        """Return all clean images."""
        return self.clean

    def inner_loss(self, outer: Tree, inner: Tree, batch: Images) -> Tensor:
        """Return g, the weighted loss."""
        return (outer["logit"].sigmoid() * _losses(inner, *batch)).mean()

    def outer_loss(self, outer: Tree, inner: Tree, batch: Images) -> Tensor:
        """Return F, the loss of the clean images."""
        return _losses(inner, *batch).mean()

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return test accuracy, and the share of labels correctly identified as clean or wrong."""
        x, y = self.test
        right = F.linear(x, **inner.params).argmax(1) == y
        detected = (outer["logit"] < 0) == self.wrong
        return {
            "test_accuracy": right.float().mean(),
            "noise_detection_accuracy": detected.float().mean(),
        }


def _losses(inner: Tree, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, **inner), y, reduction="none")
