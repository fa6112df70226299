"""What a loss treats as constant, kept constant in finite differences and in forward mode.

`x.detach()`, `x.data`, `x.item()`, comparisons and everything under `torch.no_grad()` have no
derivative in reverse mode, yet their values move with the parameters. A finite difference that
lets them move differentiates through the detach; so do torch's dual numbers under `no_grad`.

- `RecordDetached` and `ReplayDetached` keep the values recorded at the unperturbed parameters;
- `along` and `tangent` take a directional derivative whose tangents stop at `no_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from metaopt.engine import tree
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree

Constants = dict[int, tuple[Callable[..., Any], Any]]
"""The call's number -> the function called and the constant it returned."""

_SET_GRAD_ENABLED = torch._C._set_grad_enabled
_MOVES = object()
FUNCTORCH: Any = torch._C._functorch


Axes = list[tuple[int, int]]
"""What `torch.func.vmap` maps over: axes of a tensor and their levels, the innermost first."""


class _Constant(NamedTuple):
    """A tensor as it was recorded, outside of `torch.func.vmap`."""

    inside: Tensor
    axes: Axes


class RecordDetached(TorchFunctionMode):
    """Record the result of every call that cuts the graph: an argument on it, the result off it.

    Run the loss inside the block, with parameters that require a gradient; then read `constants`.
    Only calls that the loss itself makes count: a detach inside one of torch's own functions
    (`F.gumbel_softmax(hard=True)`) is not recorded, and so still moves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.constants: Constants = {}
        self.calls = 0
        self._declared = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Inside a custom autograd.Function, gradients are off though nobody called no_grad.
        custom = torch.is_grad_enabled() != self._declared
        cuts = not custom and any(_peeled(t)[0].requires_grad for t in tree.tensors((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if func is _SET_GRAD_ENABLED and not custom:
            self._declared = torch.is_grad_enabled()
        elif cuts:
            value = _constant(result)
            if value is not _MOVES:
                self.constants[self.calls] = func, value
        return result


class ReplayDetached(TorchFunctionMode):
    """Return the recorded constants in the same order of calls.

    Raises:
        RuntimeError: the calls differ from those recorded, so the loss is not a function of its
            arguments and key; raised at the first recorded call that does not match.
    """

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.constants, self.calls = constants, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # The call is made all the same: it may draw random numbers or change a buffer.
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if self.calls not in self.constants:
            return result
        recorded, value = self.constants[self.calls]
        if recorded != func:
            raise RuntimeError(
                f"inner_loss called {_name(func)} where its first evaluation called "
                f"{_name(recorded)}: it must make the same calls for the same batch and key. "
                f"Use estimator=unroll or implicit for a loss that keeps hidden state."
            )
        # The result of an operation in place is its argument, which later calls read.
        if isinstance(result, Tensor) and any(result is a for a in args):
            with torch.no_grad():
                return result.copy_(_replaced(result, value))
        return _replaced(result, value)


def _constant(result: Any) -> Any:
    """Return a copy of what is off the graph, `_MOVES` for the rest; sequences become lists."""
    if isinstance(result, Tensor):
        inside, axes = _peeled(result)
        return _MOVES if inside.requires_grad else _Constant(inside.detach().clone(), axes)
    if isinstance(result, (list, tuple)):
        values = [_constant(r) for r in result]
        return _MOVES if all(v is _MOVES for v in values) else values
    return result if isinstance(result, (bool, int, float)) else _MOVES


def _replaced(result: Any, value: Any) -> Any:
    if value is _MOVES:
        return result
    if isinstance(value, list):
        return type(result)([_replaced(r, v) for r, v in zip(result, value, strict=True)])
    if not isinstance(value, _Constant):
        return value
    return _wrapped(value.inside.clone(), value.axes)


def _name(func: Any) -> str:
    return getattr(func, "__name__", repr(func))


@contextmanager
def along(primal: Tree, direction: Tree) -> Iterator[Tree]:
    """Give the block dual numbers primal + eps direction.

    Torch's dual numbers pass through `torch.no_grad()`; here they stop there, as a reverse pass
    does, so that both modes have the same derivative. Do not open the block inside one.
    """
    with twice_differentiable(), forward_ad.dual_level(), _ConstantsHaveNoTangent():
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
        if torch.is_grad_enabled():
            return result
        return tree.map_tensors(_without_tangent, result)


def _without_tangent(tensor: Tensor) -> Tensor:
    inside, axes = _peeled(tensor)
    return _wrapped(forward_ad.unpack_dual(inside).primal, axes)


def _peeled(tensor: Tensor) -> tuple[Tensor, Axes]:
    """Return the tensor inside those of `torch.func.vmap`, which do not say what they lead to."""
    axes = []
    while FUNCTORCH.is_batchedtensor(tensor):
        axes.append((FUNCTORCH.maybe_get_bdim(tensor), FUNCTORCH.maybe_get_level(tensor)))
        tensor = FUNCTORCH.get_unwrapped(tensor)
    return tensor, axes


def _wrapped(tensor: Tensor, axes: Axes) -> Tensor:
    """Return a tensor as `_peeled` was given it."""
    for axis, level in reversed(axes):
        tensor = FUNCTORCH._add_batch_dim(tensor, axis, level)
    return tensor
