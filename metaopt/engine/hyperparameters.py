"""Hyperparameters of an inner optimizer that may be made of phi: rates, momentum, decay.

Each is a number, a tensor of one element, or a dict of these by the parameter's name, whose tensors
may have any shape that broadcasts to the parameter's. Only numbers have their ranges checked:
reading the value of a tensor would wait for the device, and Meta-SGD's rates may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges

BY_NAME = ("lr", "weight_decay")
"""Those that may be a dict."""

Number = float | Tensor
Hyperparameter = Number | dict[str, Number]


def check_hyperparameters(owner: object, *ranges: str) -> None:
    """Raise an error unless attributes of an optimizer are hyperparameters, with numbers in range.

    Args:
        owner: see `check_ranges`.
        ranges: of one attribute each.

    Raises:
        ValueError: a number out of its range, or several where one is needed.
        TypeError: a tensor of integers, or a dict of what is one number for all parameters.
    """
    kind = type(owner)
    for text in ranges:
        (name,) = (t for t in text.removesuffix(" or null").split() if t.isidentifier())
        value = getattr(owner, name)
        if isinstance(value, dict) and (name not in BY_NAME or not hasattr(owner, "groups")):
            raise TypeError(f"{kind.__name__} needs one {name} for all parameters; got a dict.")
        parts = list(value.values()) if isinstance(value, dict) else [value]
        for part in parts:
            if not isinstance(part, Tensor):
                # `check_ranges` reads an attribute: here of a blank object of the same class.
                blank = object.__new__(kind)
                object.__setattr__(blank, name, part)
                check_ranges(blank, text)
            elif not part.is_floating_point():
                raise TypeError(f"{kind.__name__} needs {text}; got {name} of {part.dtype}.")
            elif part.numel() != 1 and not isinstance(value, dict):
                raise ValueError(
                    f"{kind.__name__} got {name} of shape {tuple(part.shape)}, and one number is "
                    f"for all parameters. Pass {{name: tensor}} for one per parameter, and index "
                    f"what is one per step: {name}=outer[...][step]."
                )


def check_names(value: dict[str, Number], name: str, params: Tree, owner: str) -> None:
    """Raise a `ValueError` unless a dict has a number or a fitting tensor for each parameter.

    Args:
        value: a hyperparameter.
        name: its name, for the message.
        params: the parameters.
        owner: the optimizer's name, for the message.
    """
    if value.keys() != params.keys():
        odd = sorted(value.keys() ^ params.keys())[0]
        raise ValueError(
            f"{name} of {owner} {'leaves out' if odd in params else 'names'} {odd!r}; the "
            f"parameters are {', '.join(params)}. Name each of them, or use `groups`."
        )
    for key, part in value.items():
        if isinstance(part, Tensor) and not _fits(part, params[key]):
            raise ValueError(
                f"{name} of {owner} for {key!r} has shape {tuple(part.shape)}, which does not "
                f"broadcast to the parameter's, {tuple(params[key].shape)}."
            )


def number_of(value: Hyperparameter, name: str, param: Tensor) -> Number:
    """Return the hyperparameter of one parameter, in its precision."""
    if not isinstance(value, dict):
        return scalar(value, param)
    part = value[name]
    return part.to(param.dtype) if isinstance(part, Tensor) else part


def scalar(value: Number, like: Tensor) -> Number:
    """Return a number, or a tensor of one element without axes, in the precision of another."""
    return value.reshape(()).to(like.dtype) if isinstance(value, Tensor) else value


def _fits(part: Tensor, param: Tensor) -> bool:
    sizes = zip(reversed(part.shape), reversed(param.shape), strict=False)
    return part.ndim <= param.ndim and all(a in (1, b) for a, b in sizes)


def learned(optimizer: Any) -> list[str]:
    """Return the names of the hyperparameters that a derivative leads to."""
    # What steps several members holds phi itself, whether or not it makes a hyperparameter.
    optimizer = getattr(optimizer, "first", optimizer)
    return [name for name, value in _named(optimizer) if any(map(_varies, tree.tensors(value)))]


def fixed(optimizer: Any) -> bool:
    """Return whether all hyperparameters are numbers."""
    return not any(True for _, value in _named(optimizer) for _ in tree.tensors(value))


def _varies(tensor: Tensor) -> bool:
    return tensor.requires_grad


def _named(optimizer: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(optimizer).items():
        if name == "groups":
            yield from (pair for group in value for pair in group.items())
        else:
            yield name, value


def is_zero(value: Hyperparameter) -> bool:
    """Return whether a hyperparameter is the number 0; a tensor may become another one."""
    return not isinstance(value, (Tensor, dict)) and value == 0


def plus(x: Tensor, y: Tensor, factor: Number) -> Tensor:
    """Return x + factor * y; for a number as torch's own optimizers add, to the bit."""
    return x + factor * y if isinstance(factor, Tensor) else x.add(y, alpha=factor)


def plus_product(x: Tensor, a: Tensor, b: Tensor, factor: Number) -> Tensor:
    """Return x + factor * a * b, likewise."""
    if isinstance(factor, Tensor):
        return x + factor * a * b
    return torch.addcmul(x, a, b, value=factor)


def plus_quotient(x: Tensor, a: Tensor, b: Tensor, factor: Number) -> Tensor:
    """Return x + factor * a / b, likewise."""
    if isinstance(factor, Tensor):
        return x + factor * a / b
    return torch.addcdiv(x, a, b, value=factor)


def root(x: Number) -> Number:
    """Return sqrt(x) of a positive number."""
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)
