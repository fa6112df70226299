"""Operators and functions of the reward language, with their torch functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class Operator(NamedTuple):
    """One operator or function.

    Args:
        fewest, most: numbers of arguments.
        function: of as many tensors, elementwise.
        precedence: of an infix or prefix operator; 0 for a function, written with brackets.
    """

    fewest: int
    most: int
    function: Callable[..., Tensor]
    precedence: int = 0


def _clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def _least(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


def _greatest(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


SUM, PRODUCT, PREFIX, ATOM = 1, 2, 3, 4
NEGATION = "negation"
INFIX = {
    "+": Operator(2, 2, torch.add, SUM),
    "-": Operator(2, 2, torch.sub, SUM),
    "*": Operator(2, 2, torch.mul, PRODUCT),
}
FUNCTIONS = {
    "min": Operator(2, 6, _least),
    "max": Operator(2, 6, _greatest),
    "abs": Operator(1, 1, torch.abs),
    "square": Operator(1, 1, torch.square),
    "clip": Operator(3, 3, _clip),
    "sin": Operator(1, 1, torch.sin),
    "cos": Operator(1, 1, torch.cos),
}
OPERATORS = {**INFIX, NEGATION: Operator(1, 1, torch.neg, PREFIX), **FUNCTIONS}
LEGAL_FUNCTIONS = "min, max, abs, square, clip(x, low, high), sin and cos"
