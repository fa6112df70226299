"""Data hyper-cleaning: training labels, half of them drawn at random, and clean ones above them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.data.images import Images
from metaopt.engine.finite import Finite
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn.network import Architecture, Network
from metaopt.problems.hyper_cleaning.weights import Weights

Rows = Literal["learned", "all", "clean", "oracle"]

KEPT = 0.5
"""A label is kept where its weight is above this."""


class Batch(NamedTuple):
    """Examples of either level.

    Args:
        rows: which training, or which clean ones, (B,).
        x: images, (B, C, H, W).
        y: classes, (B,).
    """

    rows: Tensor
    x: Tensor
    y: Tensor


class HyperCleaning(Finite):
    """g = mean of w_i l_i over noisy training examples, F = mean loss of the clean ones.

    Symbols: w_i = `weights` of phi; theta = the network's parameters; l_i = cross-entropy. The seed
    permutes the images: the first `train` are for g, the next `clean` for F, and `test` of those
    that follow, or of the test images where the data have such, for the test. With probability
    `noise` a training label is drawn again from all classes, so that it is right by chance in one
    of ten; `right` says which are. Both levels take fixed blocks in epochs without replacement.

    | rows | what g trains on |
    |---|---|
    | learned | all training examples with the weights of phi |
    | all | the same with weights of 1 |
    | oracle | those whose label is right, and no others |
    | clean | the clean examples alone ("val only"): what the training examples must add to |

    The last three ignore phi, so that estimators of a gradient refuse them: use `estimator=score`
    and `optimizer=schedule`, or the methods `hyper_cleaning/all`, `oracle` and `clean`.

    Args:
        data: images with classes; see `metaopt.data.images`.
        model: makes the classifier from the shape of one image and the number of classes.
        weights: `LogitTable` or `MetaWeightNet`.
        inner_optimizer: how theta is stepped.
        train, clean: number of training and of clean examples, >= 1.
        test: number of test examples, or `None` for all that are left.
        noise: probability that a training label is drawn again, in [0, 1].
        rows: see above.
        batch, clean_batch: examples in a batch of training and of clean examples, whose numbers
            they divide; `None` for all of them.
        replacement: whether blocks are drawn with replacement.
        seed: of the split, the noise and the epochs.

    Metrics: `test_accuracy` and `test_loss`; `f1` of the kept labels (weight above 1/2) against the
    right ones; `right_weight` and `wrong_weight`, the mean weights of right and of wrong labels,
    without which F1 says little: it moves with a weight that crosses 1/2. Shares in 0 to 1. The
    last three are left out for `rows=clean`, and where no label is wrong, or none right.

    Example:
        >>> from functools import partial
        >>> from metaopt import SGD, Descent, Soba, run
        >>> from metaopt.nn import MLP
        >>> from metaopt.problems.hyper_cleaning import HyperCleaning, LogitTable, digits
        >>> linear = partial(MLP, widths=())
        >>> problem = HyperCleaning(digits(), linear, LogitTable(), SGD(lr=1.0), noise=0.5)
        >>> result = run(problem, Soba(), Descent("adam", lr=0.1), 200, progress=False)
        >>> result.metrics["eval/f1"] > 0.85
        True

    References: see `metaopt.problems.hyper_cleaning`.
    """

    def __init__(
        self, data: Images, model: Architecture, weights: Weights, inner_optimizer: InnerOptimizer,
        train: int = 1000, clean: int = 200, test: int | None = None, noise: float = 0.5,
        rows: Rows = "learned", batch: int | None = None, clean_batch: int | None = None,
        replacement: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        self.weights, self.inner_optimizer, self.rows = weights, inner_optimizer, rows
        self.noise, self.replacement, self.seed = noise, replacement, seed
        self.train_count, self.clean_count, self.test_count = train, clean, test
        self.batch_size = _block_size("batch", batch, "train", train)
        self.clean_batch_size = _block_size("clean_batch", clean_batch, "clean", clean)
        check_ranges(self, "0 <= noise <= 1", "replacement", "seed")
        check_choices(self, rows=get_args(Rows))
        self.train: Batch
        self.clean: Batch
        self._split(data)
        if rows == "clean":
            self.train, self.batch_size = self.clean, self.clean_batch_size
        self.inner_batches = len(self.train.y) // self.batch_size
        self.outer_batches = clean // self.clean_batch_size
        self.epoch_seed = None if replacement else seed
        shape = self.train.x.shape[1:]
        self.network = Network(lambda: model(shape, data.classes))

    def _split(self, data: Images) -> None:
        """Set `train`, `clean`, `test` and `right`, by the seed."""
        draw = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(data.y), generator=draw)
        n, m = self.train_count, self.train_count + self.clean_count
        held_out = order[m:] if data.test is None else torch.arange(len(data.test[1]))
        least = 1 if self.test_count is None else self.test_count
        if m > len(data.y) or len(held_out) < least:
            raise ValueError(
                f"HyperCleaning needs train + clean images, and test others; got train={n}, "
                f"clean={self.clean_count} and test={self.test_count}, of {len(data.y)} images"
                + (f" and {len(held_out)} test images." if data.test else ".")
            )
        held_out = held_out[: self.test_count]
        truth = data.y[order[:n]]
        redrawn = torch.rand(n, generator=draw) < self.noise
        drawn = torch.randint(data.classes, (n,), generator=draw)
        labels = torch.where(redrawn, drawn, truth)
        self.right = (labels == truth).float()
        if self.rows == "oracle" and not self.right.any():
            raise ValueError(
                f"rows=oracle trains on right labels, and noise={self.noise} has left none of "
                f"{n}: use less noise or a larger train."
            )
        self.train = Batch(torch.arange(n), data.x[order[:n]], labels)
        clean, rows = order[n:m], torch.arange(self.clean_count)
        self.clean = Batch(rows, data.x[clean], data.y[clean])
        x, y = (data.x, data.y) if data.test is None else data.test
        self.test = x[held_out], y[held_out]
        shares = {0.0, 1.0}
        self._divided = self.rows != "clean" and float(self.right.mean()) not in shares
        # Seeds are splits of one data set where the test is a part of it.
        self.resplit = 0.0 if data.test is not None else len(held_out) / m

    def init_outer(self, generator: Generator) -> Tree:
        """Return equal weights."""
        return self.weights.init(self.train_count, generator)

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the network's parameters, drawn as torch does."""
        return self.network.init(generator)

    def inner_batch_at(self, index: int) -> Batch:
        """Return block `index` of what g trains on."""
        return _block(self.train, index, self.batch_size)

    def outer_batch_at(self, index: int) -> Batch:
        """Return block `index` of the clean examples."""
        return _block(self.clean, index, self.clean_batch_size)

    def inner_loss(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return g, the weighted loss."""
        return self.example_losses(outer, inner, batch).mean()

    def outer_loss(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return F, the loss of clean examples."""
        return self._losses(inner, batch).mean()

    # What retraining without some of the examples is: `metaopt-check --retrain`.

    @property
    def example_count(self) -> int:
        """Number of examples that g trains on."""
        return len(self.train.y)

    def examples_of(self, batch: Batch) -> Tensor:
        """Return which examples are in a batch, (B,)."""
        return batch.rows

    def batch_of(self, examples: Tensor) -> Batch:
        """Return the batch of given examples."""
        return Batch(*(part[examples] for part in self.train))

    def example_losses(self, outer: Tree, inner: Tree, batch: Batch) -> Tensor:
        """Return the weighted loss of each example, (B,)."""
        losses = self._losses(inner, batch)
        if self.rows == "oracle":  # of mean 1, as the weights of the other controls
            right = self.right.to(losses.device)
            return losses * right[batch.rows] / right.mean()
        if self.rows == "learned":
            return losses * self.weights(outer, batch.rows, losses)
        return losses

    def _losses(self, inner: Tree, batch: Batch) -> Tensor:
        return cross_entropy(self.network.train(inner, batch.x), batch.y, reduction="none")

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return loss and accuracy on test images, and how the weights divide the labels."""
        x, y = self.test
        logits = self.network.evaluate(inner.params, x)
        figures = {
            "test_accuracy": (logits.argmax(1) == y).float().mean(),
            "test_loss": cross_entropy(logits, y),
        }
        return figures | (self._division(outer, inner) if self._divided else {})

    def _division(self, outer: Tree, inner: GradientState) -> dict[str, Tensor]:
        """Return F1 of the kept labels, and the mean weights of right and of wrong ones."""
        losses = self._losses(inner.params, self.train)
        right = self.right.to(losses)
        if self.rows == "learned":
            weights = self.weights(outer, self.train.rows, losses)
        else:
            weights = right if self.rows == "oracle" else torch.ones_like(right)
        kept, wrong = (weights > KEPT).to(right), 1 - right
        return {
            "f1": 2 * (kept * right).sum() / (kept.sum() + right.sum()),
            "right_weight": (weights * right).sum() / right.sum(),
            "wrong_weight": (weights * wrong).sum() / wrong.sum(),
        }


def _block_size(name: str, size: int | None, counted: str, count: int) -> int:
    """Return the number of examples in a block of `count` examples."""
    for argument, value in ((counted, count), (name, size)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"HyperCleaning needs {argument} to be an int >= 1; got {value!r}.")
    if size is not None and count % size:
        raise ValueError(
            f"HyperCleaning needs {counted} to be a multiple of {name}, since batches are blocks "
            f"of equal size; got {counted}={count} and {name}={size}."
        )
    return count if size is None else size


def _block(examples: Batch, index: int, size: int) -> Batch:
    return Batch(*(part[size * index : size * (index + 1)] for part in examples))
