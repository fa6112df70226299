"""Arithmetic on lists of tensors in two ways, for one formula of an optimizer's step.

`OneByOne` makes new tensors on the graph; `InPlace` writes into its first argument, by one call for
a whole list. Both repeat the operations of torch's own optimizers, so that they agree to the bit on
a CPU, in float32 and float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metaopt.engine.hyperparameters import Number, plus, plus_product, plus_quotient

Lists = tuple[Tensor, ...] | list[Tensor]


class OneByOne:
    """New tensors, differentiable in factors, too."""

    def add(self, x: Lists, y: Lists, factor: Number = 1.0) -> Lists:
        """Return x + factor * y."""
        # Not by `torch._foreach_add`, whose node keeps both lists in memory for the reverse pass.
        return [plus(a, b, factor) for a, b in zip(x, y, strict=True)]

    def new_sum(self, x: Lists, y: Lists, factor: Number = 1.0) -> Lists:
        """Return x + factor * y, new tensors in either way."""
        return OneByOne.add(self, x, y, factor)

    def mul(self, x: Lists, factor: Number) -> Lists:
        """Return factor * x."""
        return [a * factor for a in x]

    def lerp(self, x: Lists, y: Lists, weight: Number) -> Lists:
        """Return x + weight * (y - x)."""
        return [torch.lerp(a, b, weight) for a, b in zip(x, y, strict=True)]

    def add_square(self, x: Lists, y: Lists, factor: Number) -> Lists:
        """Return x + factor * y * y."""
        return [plus_product(a, b, b, factor) for a, b in zip(x, y, strict=True)]

    def add_quotient(self, x: Lists, y: Lists, z: Lists, factor: Number) -> Lists:
        """Return x + factor * y / z."""
        return [plus_quotient(*parts, factor) for parts in zip(x, y, z, strict=True)]

    def root(self, x: Lists, divisor: Number, eps: Number) -> Lists:
        """Return sqrt(x) / divisor + eps, new tensors, with derivative 0 at x = 0."""
        return [safe_sqrt(a) / divisor + eps for a in x]


class InPlace(OneByOne):
    """The first argument, with the result in it; off the graph, with factors that are numbers."""

    def add(self, x: Lists, y: Lists, factor: Any = 1.0) -> Lists:
        """Return x, to which factor * y is added."""
        torch._foreach_add_(x, y, alpha=factor)
        return x

    def mul(self, x: Lists, factor: Any) -> Lists:
        """Return x, multiplied by a factor."""
        torch._foreach_mul_(x, factor)
        return x

    def lerp(self, x: Lists, y: Lists, weight: Any) -> Lists:
        """Return x, moved to y by a share of the way."""
        torch._foreach_lerp_(x, y, weight)
        return x

    def add_square(self, x: Lists, y: Lists, factor: Any) -> Lists:
        """Return x, to which factor * y * y is added."""
        torch._foreach_addcmul_(x, y, y, factor)
        return x

    def add_quotient(self, x: Lists, y: Lists, z: Lists, factor: Any) -> Lists:
        """Return x, to which factor * y / z is added."""
        torch._foreach_addcdiv_(x, y, z, factor)
        return x

    def root(self, x: Lists, divisor: Any, eps: Any) -> Lists:
        """Return sqrt(x) / divisor + eps, new tensors."""
        roots = torch._foreach_sqrt(x)
        torch._foreach_div_(roots, divisor)
        torch._foreach_add_(roots, eps)
        return roots


def transformed() -> bool:
    """Return whether `torch.func` or forward mode is at work, which know no call for a list."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def safe_sqrt(x: Tensor) -> Tensor:
    """Return sqrt(x) with derivative 0 at x = 0, where the usual one is infinite.

    A dead unit has a second moment of exactly 0; without this, the derivative through Adam is NaN.
    """
    positive = x > 0
    # The inner `where` keeps the infinite slope out: 0 * inf in the reverse pass would be NaN.
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), 0.0)
