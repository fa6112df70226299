"""What a loss treats as constant, recorded once and replayed at other parameters.

`x.detach()`, `x.data`, `x.item()`, comparisons and everything under `torch.no_grad()` have no
derivative, yet their values move with the parameters. A finite difference that lets them move
differentiates through the detach. Recording them at the unperturbed parameters keeps them fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Constants = dict[int, tuple[Callable[..., Any], Any]]
"""The call's number -> the function called and the constant it returned."""

_SET_GRAD_ENABLED = torch._C._set_grad_enabled
_MOVES = object()


class RecordDetached(TorchFunctionMode):
    """Record the result of every call that cuts the graph: an argument on it, the result off it.

    Run the loss inside the block, with parameters that require a gradient; then read `constants`.
    Only calls that the loss itself makes count: a detach inside one of torch's own functions
    (`F.gumbel_softmax(hard=True)`) is not seen, and so still moves.
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
        cuts = not custom and _on_graph((args, kwargs))
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
        if isinstance(result, Tensor) and any(result is a for a in args):
            with torch.no_grad():
                return result.copy_(value)
        return _replaced(result, value)


def _on_graph(node: Any) -> bool:
    if isinstance(node, Tensor):
        return node.requires_grad
    if isinstance(node, Mapping):
        return any(_on_graph(v) for v in node.values())
    return isinstance(node, (list, tuple)) and any(_on_graph(v) for v in node)


def _constant(result: Any) -> Any:
    """Return a copy of what is off the graph, `_MOVES` for the rest; sequences become lists."""
    if isinstance(result, Tensor):
        return _MOVES if result.requires_grad else result.detach().clone()
    if isinstance(result, (list, tuple)):
        values = [_constant(r) for r in result]
        return _MOVES if all(v is _MOVES for v in values) else values
    return result if isinstance(result, (bool, int, float)) else _MOVES


def _replaced(result: Any, value: Any) -> Any:
    if value is _MOVES:
        return result
    if isinstance(value, list):
        return type(result)([_replaced(r, v) for r, v in zip(result, value, strict=True)])
    return value.clone() if isinstance(value, Tensor) else value


def _name(func: Any) -> str:
    return getattr(func, "__name__", repr(func))
