"""Directional derivatives by forward mode, with the constants that reverse mode respects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from metaopt.engine.protocols import Tree


@contextmanager
def along(primal: Tree, direction: Tree) -> Iterator[Tree]:
    """Give the block dual numbers primal + eps direction.

    Torch's dual numbers pass through `torch.no_grad()`; here they stop there, as a reverse pass
    does, so that both modes have the same derivative. Do not open the block inside one.
    """
    with forward_ad.dual_level(), _ConstantsHaveNoTangent():
        yield {k: forward_ad.make_dual(p.detach(), direction[k]) for k, p in primal.items()}


def tangent(value: Tensor) -> Tensor | None:
    """Return the directional derivative that a dual number carries, or `None` for a constant."""
    result: Tensor | None = forward_ad.unpack_dual(value).tangent
    return result


class _ConstantsHaveNoTangent(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return result if torch.is_grad_enabled() else _primal(result)


def _primal(result: Any) -> Any:
    if isinstance(result, Tensor):
        return forward_ad.unpack_dual(result).primal
    if isinstance(result, (list, tuple)):
        return type(result)([_primal(r) for r in result])
    return result
