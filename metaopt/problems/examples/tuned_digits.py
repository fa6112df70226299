"""Learning rate and weight decay of a small classifier of digits, for searches and schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, epoch_batch
from metaopt.engine.ranges import check_ranges
from metaopt.nn.mlp import MLP
from metaopt.nn.network import Network

Images = tuple[Tensor, Tensor]
"""Pixels in [0, 1], (B, 64), and classes, (B,)."""

CLASSES = 10


class TunedDigits(GradientProblem):
    """g = cross-entropy of a batch of training images, F = that of the validation images.

    Symbols: phi = `outer["log_lr"]` and `outer["log_weight_decay"]`, scalars, the natural
    logarithms of learning rate and weight decay of SGD with momentum; theta = weights and biases of
    a perceptron of one hidden layer of tanh. phi steers the inner level through its optimizer
    alone. Data: the digits of scikit-learn, `count` to train on, as many to validate on, the others
    to test; epochs without replacement. Everything is in float64.

    Args:
        count: training images, in [2, 898].
        hidden: hidden units, >= 1.
        batch: images in a batch, in [1, count].
        lr, weight_decay: where both start, > 0.
        momentum: of SGD, in [0, 1).
        noise: probability that a training label is another class, in [0, 1): what a weight decay is
            for.
        seed: of the split, the noise and the epochs.

    Example:
        >>> from metaopt import Uniform, run
        >>> from metaopt.estimators import PopulationScore
        >>> from metaopt.optimizers import PopulationBased
        >>> space = {"log_lr": Uniform(-7.0, 0.0), "log_weight_decay": Uniform(-12.0, -2.0)}
        >>> search = PopulationBased(members=5, space=space)
        >>> result = run(TunedDigits(), PopulationScore(inner_steps=10), search, 5, progress=False)
        >>> result.metrics["eval/test_accuracy"] > 0.5
        True
    """

    def __init__(
        self, count: int = 200, hidden: int = 32, batch: int = 50, lr: float = 1e-2,
        weight_decay: float = 1e-4, momentum: float = 0.9, noise: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        from sklearn.datasets import load_digits

        self.count, self.hidden, self.batch, self.noise = count, hidden, batch, noise
        self.lr, self.weight_decay, self.momentum, self.seed = lr, weight_decay, momentum, seed
        check_ranges(
            self, "2 <= count <= 898", "hidden >= 1", f"1 <= batch <= {count}", "lr > 0",
            "weight_decay > 0", "0 <= momentum < 1", "0 <= noise < 1", "seed",
        )  # fmt: skip
        draw = torch.Generator().manual_seed(seed)
        x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
        order = torch.randperm(len(x), generator=draw)
        x, y = x[order].double() / 16, y[order]
        wrong = torch.rand(count, generator=draw) < noise
        other = (y[:count] + torch.randint(1, CLASSES, (count,), generator=draw)) % CLASSES
        self.train: Images = (x[:count], torch.where(wrong, other, y[:count]))
        self.validation: Images = (x[count : 2 * count], y[count : 2 * count])
        self.test: Images = (x[2 * count :], y[2 * count :])
        self.resplit = len(self.test[0]) / (2 * count)
        self.network = Network(lambda: MLP((64,), CLASSES, (hidden,), "tanh").double())

    def inner_optimizer(self, outer: Tree, step: int) -> SGD:
        """Return SGD with momentum at the rates of phi."""
        return SGD(
            lr=outer["log_lr"].exp(),
            weight_decay=outer["log_weight_decay"].exp(),
            momentum=self.momentum,
        )

    def init_outer(self, generator: Generator) -> Tree:
        """Return the logarithms of learning rate and weight decay."""
        values = {"log_lr": self.lr, "log_weight_decay": self.weight_decay}
        return {k: torch.tensor(math.log(v), dtype=torch.float64) for k, v in values.items()}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return weights and biases, drawn as `torch.nn.Linear` does."""
        return self.network.init(generator)

    def inner_batch(self, draw: Draw) -> Images:
        """Return the next images of the epoch."""
        x, y = self.train
        chosen = epoch_batch(len(x), self.batch, draw.total_inner_step, self.seed)
        return x[chosen], y[chosen]

    def outer_batch(self, draw: Draw) -> Images:
        """Return all validation images."""
        return self.validation

    def inner_loss(self, outer: Tree, inner: Tree, batch: Images) -> Tensor:
        """Return g, the mean cross-entropy of the batch."""
        return self._loss(inner, batch)

    def outer_loss(self, outer: Tree, inner: Tree, batch: Images) -> Tensor:
        """Return F, the mean cross-entropy of the validation images."""
        return self._loss(inner, batch)

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return loss and accuracy on test images, and the two rates."""
        x, y = self.test
        logits = self.network.evaluate(inner.params, x)
        return {
            "test_loss": F.cross_entropy(logits, y),
            "test_accuracy": (logits.argmax(1) == y).double().mean(),
            "lr": outer["log_lr"].exp(),
            "weight_decay": outer["log_weight_decay"].exp(),
        }

    def _loss(self, inner: Tree, batch: Images) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.network.train(inner, x), y)
