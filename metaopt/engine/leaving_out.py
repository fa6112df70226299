"""Training again without subsets of the training examples: what these have contributed to F."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.example_weights import ExampleWeighted, example_losses
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Keys, fold, generator
from metaopt.engine.replicates import Replicates
from metaopt.engine.stacked import pick, stack

Drawn = Literal["auto", "disjoint", "random"]

STACKED_BYTES = 2**28
"""Bytes of the parameters and moments of trainings that are stacked."""

MOST_STACKED = 128


def draw_subsets(n: int, count: int, leave: float, drawn: Drawn, key: int) -> Tensor:
    """Return which of n examples are in each of several subsets of one size, (count, n), boolean.

    Args:
        n: number of examples.
        count: number of subsets.
        leave: size of a subset as a share of the examples, in (0, 1).
        drawn: disjoint, parts of one random order; random, each drawn without replacement, the
            complement of a random half at leave=0.5; auto, disjoint where the examples suffice.
        key: of the order.

    Raises:
        ValueError: `leave` is out of range or less than one example, or there are too few examples
            for disjoint subsets.
    """
    if drawn not in get_args(Drawn):
        raise ValueError(f"subsets must be one of {', '.join(get_args(Drawn))}; got {drawn!r}.")
    if not 0 < leave < 1:
        raise ValueError(f"leave must be in (0, 1), the share of examples left out; got {leave:g}.")
    size = round(leave * n)
    if not 1 <= size < n:
        raise ValueError(
            f"leave={leave:g} of {n} training examples is {leave * n:.2g} of them; leave out at "
            f"least one and not all, such as leave={min(0.5, max(0.01, 1 / n)):.2g}."
        )
    fits = size * count <= n
    if drawn == "disjoint" and not fits:
        raise ValueError(
            f"{count} disjoint subsets of {size} are more than the {n} training examples; take "
            f"subsets=random, or fewer retrainings."
        )
    subsets = torch.zeros(count, n, dtype=torch.bool)
    order = torch.randperm(n, generator=generator(fold(key, "subsets")))
    for j in range(count):
        if drawn == "random" or not fits:
            members = torch.randperm(n, generator=generator(fold(key, "subsets", j)))[:size]
        else:
            members = order[j * size : (j + 1) * size]
        subsets[j, members] = True
    return subsets


class WeightedTraining:
    """K inner steps of a problem under given weights of its examples; all else stays as it is.

    The start, batches and masks are those of the first inner run of the seed.

    Args:
        loop: of an `ExampleWeighted`.
        steps: K.
        seed: that of the run.

    Attributes:
        ones: weights of 1.
        alone: why trainings are not stacked, or an empty text.
    """

    def __init__(self, loop: InnerLoop, steps: int, seed: int) -> None:
        self.loop, self.steps, self.key = loop, steps, fold(seed, 0)
        self.ones: Tensor = loop.problem.init_outer(generator(0))["weights"]
        self.alone = ""
        start = self.start()
        size = sum(t.numel() * t.element_size() for t in tree.tensors(start[:4]))
        self.together = min(MOST_STACKED, STACKED_BYTES // max(size, 1))
        if self._several_models():
            # Its batches fill the cores already; larger ones leave the cache.
            self.alone, self.together = "the task has several models in a batch", 1
            return
        if self.together < 2:
            self.alone = "the model is large"
            return
        try:
            self._members(2).check()
        except (ValueError, TypeError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0].partition(". ")[0]
            self.alone, self.together = f"they cannot be stacked: {reason}", 1

    def _several_models(self) -> bool:
        start, outer = self.start(), {"weights": self.ones}
        one = torch.zeros(1, dtype=torch.long)
        losses = example_losses(self.loop, outer, tree.leaves(start.params), start, one, self.key)
        return losses.ndim > 1

    def start(self) -> GradientState:
        """Return theta_0 and all that goes with it."""
        return self.loop.start({"weights": self.ones}, None, self.key)

    def end(self) -> GradientState:
        """Return the state after training with weights of 1."""
        return self.loop.run({"weights": self.ones}, self.start(), self.key, self.steps)

    def __call__(self, weights: Tensor, steps: int | None = None) -> tuple[Tensor, list[Tree]]:
        """Return F after training with each row of weights, (m,) on the CPU, and theta_K of each.

        Args:
            weights: (m, n).
            steps: fewer than K, to see what one costs.
        """
        count = self.steps if steps is None else steps
        values, ends = [], []
        for part in weights.to(self.ones).split(max(1, self.together)):
            some, models = self._stacked(part, count) if len(part) > 1 else self._one(part, count)
            values.append(some.double().cpu())
            ends += models
        return torch.cat(values), ends

    def _one(self, weights: Tensor, steps: int) -> tuple[Tensor, list[Tree]]:
        outer = {"weights": weights[0]}
        end = self.loop.run(outer, self.start(), self.key, steps)
        return self._mean(self.loop.evaluate(outer, end, self.key).value)[None], [end.params]

    def _stacked(self, weights: Tensor, steps: int) -> tuple[Tensor, list[Tree]]:
        count, outer = len(weights), {"weights": weights}
        members, keys = self._members(count), Keys([self.key] * count)
        start = stack([self.start()] * count)
        with tree.replicated():
            end = members.run(outer, start, keys, steps)
            value = self._mean(members.evaluate(outer, end, keys).value)
        return value, [pick(end.params, j) for j in range(count)]

    def _mean(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value) / self.loop.problem.replicates

    def _members(self, count: int) -> Replicates:
        problems: Sequence[ExampleWeighted] = [self.loop.problem] * count  # type: ignore[list-item]
        return Replicates(problems, [0] * count)
