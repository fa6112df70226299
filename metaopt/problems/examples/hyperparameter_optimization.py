"""L2 penalties of a linear model, one for each feature or group: hyperparameters by validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.engine.ranges import check_choices, check_ranges

Data = Literal["breast_cancer", "diabetes"]
Penalties = Literal["feature", "group", "one"]
Examples = tuple[Tensor, Tensor]
"""Features, (n, d), and targets, (n,)."""

DIABETES_GROUPS = (0, 0, 1, 1, 2, 2, 2, 2, 2, 2)
"""Age and sex, body mass and blood pressure, six measurements of the serum."""


class HyperparameterOptimization(GradientProblem):
    """Choose L2 penalties so that the model that is trained with them predicts held-out examples.

    g(phi, theta) = l(theta; training) + sum_j lambda_j w_j^2 / 2,  F(phi, theta) = l(theta;
    validation), with the mean logistic loss l (`data="breast_cancer"`) or half the mean squared
    error (`data="diabetes"`), and

    lambda_j = min_penalty (max_penalty / min_penalty)^sigmoid(phi_i), i the penalty of feature j.

    Symbols: phi = `outer["penalty_logit"]`, (penalties,), where 0 is the geometric mean of the
    bounds; theta = `weight`, (d,), and `bias`, which has no penalty. With lambda = exp(phi) the
    penalty of a useless feature rises as long as the search lasts, and beyond 2 / lr gradient
    descent diverges: for data of curvature L it converges at all phi where lr (L + max_penalty) <
    2. The penalties of useful features fall as long, which fits the validation examples alone:
    60 penalties in [0.0005, 5] end at a test loss of 0.20, in [0.01, 5] at 0.13 (exact solutions of
    g, six splits of breast_cancer).

    Data: 569 x 30 or 442 x 10 numbers of scikit-learn, split at random, and `noise_features` of
    normal numbers beside them; features are scaled to mean 0 and deviation 1 on the training
    examples, and so is the target of diabetes. All data are one batch, in float64.

    Args:
        data: see above.
        penalties: one for each "feature"; for each "group" of features (of breast_cancer mean,
            error and worst value of one quantity; of diabetes personal data, body and serum; of
            noise three by three); or "one" for all.
        noise_features: features without a relation to the target, >= 0.
        train_size, validation_size: examples of each, >= 2; the others are for the test.
        min_penalty, max_penalty: bounds of all penalties, 0 < min_penalty < max_penalty.
        penalty: where all of them start, between these.
        inner_optimizer: how theta is stepped; `None` is SGD of rate 0.2.
        warm_start: whether an inner run starts where the last one ended, as hypergradients want it,
            or at zero, as values do that are compared with each other (`estimator=score`).
        refit_steps: inner steps from zero under the chosen penalties after the last outer step,
            >= 0, on whose result the metrics are then taken: a model that has been trained all the
            time would flatter the method that left it. No cost of the search; 0 keeps the model.
        seed: of the split and the noise.

    Raises:
        ValueError: an argument outside its range, too few examples to test on, or plain gradient
            descent that would diverge at the largest penalty.

    Example:
        >>> from metaopt import Descent, Soba, run
        >>> problem = HyperparameterOptimization(data="diabetes", refit_steps=300)
        >>> result = run(problem, Soba(), Descent("adam", lr=0.1), 100, progress=False)
        >>> result.metrics["eval/test_loss"] < 0.4
        True
    """

    def __init__(
        self, data: Data = "breast_cancer", penalties: Penalties = "feature",
        noise_features: int = 30, train_size: int = 100, validation_size: int = 100,
        penalty: float = 0.1, min_penalty: float = 0.01, max_penalty: float = 5.0,
        inner_optimizer: InnerOptimizer | None = None, warm_start: bool = True,
        refit_steps: int = 3000, seed: int = 0,
    ) -> None:  # fmt: skip
        self.data, self.penalties, self.noise_features = data, penalties, noise_features
        self.penalty, self.min_penalty, self.max_penalty = penalty, min_penalty, max_penalty
        self.seed = seed
        self.train_size, self.validation_size = train_size, validation_size
        self.warm_start, self.refit_steps = warm_start, refit_steps
        check_choices(self, data=get_args(Data), penalties=get_args(Penalties))
        check_ranges(
            self, "noise_features >= 0", "train_size >= 2", "validation_size >= 2",
            "0 < min_penalty < penalty < max_penalty", "refit_steps >= 0", "warm_start", "seed",
        )  # fmt: skip
        self._log_range = math.log(max_penalty / min_penalty)
        self.inner_optimizer = inner_optimizer or SGD(lr=0.2)
        x, y = self._drawn()
        rest = len(x) - train_size - validation_size
        if rest < 1:
            raise ValueError(
                f"train_size={train_size} and validation_size={validation_size} leave none of the "
                f"{len(x)} examples of {data} to test on."
            )
        x = (x - x[:train_size].mean(0)) / x[:train_size].std(0)
        if data == "diabetes":
            y = (y - y[:train_size].mean()) / y[:train_size].std()
        sizes = [train_size, validation_size, rest]
        self.train, self.validation, self.test = zip(x.split(sizes), y.split(sizes), strict=True)
        self.resplit = rest / (train_size + validation_size)
        self.penalty_of = self._penalty_of()
        self._check_stable()

    def _drawn(self) -> Examples:
        """Return all examples in the order of the seed, with the noise beside their features."""
        from sklearn import datasets

        load = {
            "breast_cancer": datasets.load_breast_cancer,
            "diabetes": datasets.load_diabetes,
        }[self.data]
        x, y = (torch.tensor(a, dtype=torch.float64) for a in load(return_X_y=True))
        draw = generator(fold(self.seed, "hyperparameter_optimization"))
        order = torch.randperm(len(x), generator=draw)
        noise = torch.randn(len(x), self.noise_features, generator=draw, dtype=torch.float64)
        self.real_features = x.shape[1]
        return torch.cat([x[order], noise], 1), y[order]

    def _penalty_of(self) -> Tensor:
        """Return the number of each feature's penalty, (d,)."""
        real = self.real_features
        if self.penalties == "one":
            return torch.zeros(real + self.noise_features, dtype=torch.long)
        if self.penalties == "feature":
            return torch.arange(real + self.noise_features)
        groups = torch.arange(real) % 10  # columns of breast cancer: 10 means, 10 errors, 10 worst
        if self.data == "diabetes":
            groups = torch.tensor(DIABETES_GROUPS)
        noise = int(groups.max()) + 1 + torch.arange(self.noise_features) // 3
        return torch.cat([groups, noise])

    def _check_stable(self) -> None:
        optimizer = self.inner_optimizer
        if (
            type(optimizer) is not SGD
            or optimizer.momentum
            or not isinstance(optimizer.lr, (int, float))
        ):
            return  # whose largest stable rate is another one
        x, _ = self.train
        with_bias = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        curvature = float(torch.linalg.matrix_norm(with_bias, 2)) ** 2 / len(x)
        curvature /= 4 if self.data == "breast_cancer" else 1  # p (1 - p) <= 1 / 4
        if optimizer.lr * (curvature + self.max_penalty) >= 2:
            raise ValueError(
                f"gradient descent of lr={optimizer.lr} diverges at max_penalty="
                f"{self.max_penalty}: the curvature of the training loss is up to {curvature:.3g}, "
                f"so have max_penalty below {2 / optimizer.lr - curvature:.3g}, or lr below "
                f"{2 / (curvature + self.max_penalty):.3g}."
            )

    def init_outer(self, generator: Generator) -> Tree:
        """Return equal penalties, (penalties,), as logits of where they are between the bounds."""
        place = math.log(self.penalty / self.min_penalty) / self._log_range
        count = int(self.penalty_of.max()) + 1
        return {"penalty_logit": torch.full((count,), place, dtype=torch.float64).logit()}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the model that predicts 0."""
        zeros = torch.zeros(len(self.penalty_of), dtype=torch.float64)
        return {"weight": zeros, "bias": zeros.new_zeros(())}

    def inner_batch(self, draw: Draw) -> Examples:
        """Return all training examples."""
        return self.train

    def outer_batch(self, draw: Draw) -> Examples:
        """Return all validation examples."""
        return self.validation

    def feature_penalties(self, outer: Tree) -> Tensor:
        """Return lambda of each feature, (d,)."""
        place = outer["penalty_logit"].sigmoid()[self.penalty_of]
        return self.min_penalty * (self._log_range * place).exp()

    def inner_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return g, the loss of the training examples plus the penalty."""
        penalty = (self.feature_penalties(outer) * inner["weight"] ** 2).sum() / 2
        return self._loss(inner, batch) + penalty

    def outer_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return F, the loss of the validation examples."""
        return self._loss(inner, batch)

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return a model trained from zero under the chosen penalties."""
        if not self.refit_steps:
            return inner
        return loop.run(outer, loop.initial(outer, key), key, self.refit_steps)

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return losses on validation and test examples, accuracy or R2, and log penalties."""
        x, y = self.test
        output = x @ inner.params["weight"] + inner.params["bias"]
        figures = {
            "validation_loss": self._loss(inner.params, self.validation),
            "test_loss": self._loss(inner.params, self.test),
        }
        if self.data == "breast_cancer":
            figures["test_accuracy"] = ((output > 0) == y.bool()).double().mean()
        else:
            figures["test_r2"] = 1 - ((output - y) ** 2).mean() / y.var(correction=0)
        logs, real = self.feature_penalties(outer).log(), self.real_features
        figures["log_penalty"] = logs[:real].mean()
        if self.noise_features:
            figures["log_penalty_noise"] = logs[real:].mean()
        return figures

    def _loss(self, inner: Tree, batch: Examples) -> Tensor:
        x, y = batch
        output = x @ inner["weight"] + inner["bias"]
        if self.data == "breast_cancer":
            return F.binary_cross_entropy_with_logits(output, y)
        return ((output - y) ** 2).mean() / 2
