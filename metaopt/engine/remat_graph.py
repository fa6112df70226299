"""The graph of a rematerialised function: one node, behind which each derivative is computed again.

The graphs that are built on the way, of one call of the function each, are dropped at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaopt.engine.kernels import eager, twice_differentiable
from metaopt.engine.storages import Storages


class _Guard(Function):
    """The entry of a graph that is dropped: its backward pass is reached from a tensor that leaked.

    Several views at once, which torch refuses to change in place.
    """

    @staticmethod
    def forward(ctx: Any, name: str, *tensors: Tensor) -> Any:
        ctx.name = name
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        raise ValueError(
            f"{ctx.name} is rematerialised, and a tensor that it computes is read without being "
            f"returned (from a hook, an attribute, an object of a class of its own). Return it, "
            f"alone or in tuples, lists and dicts, or leave it out of remat."
        )


def guarded(tensors: Sequence[Tensor], name: str) -> tuple[list[Tensor], Any]:
    """Return aliases of the tensors behind one node, and the node."""
    linked = [i for i, t in enumerate(tensors) if t.requires_grad]
    entries = list(tensors)
    guard: Any = _Guard.apply
    for i, alias in zip(linked, guard(name, *(tensors[i] for i in linked)), strict=True):
        entries[i] = alias
    return entries, entries[linked[0]].grad_fn


def changes_entry(error: RuntimeError) -> bool:
    """Return whether torch has refused a change in place of one of the aliases."""
    return _Guard.__name__ in str(error)


def operations(outputs: Sequence[Tensor], entry: Any, name: str) -> frozenset[str]:
    """Return the names of the nodes between outputs and entry; raise for a leaf on the way."""
    names, visited = set(), {entry}
    nodes: list[Any] = [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            raise ValueError(
                f"{name} is rematerialised and reads a tensor on the graph that is not among its "
                f"arguments, parameters and buffers: its derivative in a tensor of shape "
                f"{tuple(node.variable.shape)} would be lost. Pass it as an argument, detach() it, "
                f"or leave it out of remat."
            )
        names |= {node.name(), *getattr(node, "operations", ())}
        nodes += [parent for parent, _ in node.next_functions]
    return frozenset(names)


class _Remat(Function):
    """Values that were computed already, and the backward pass that computes them again."""

    @staticmethod
    def forward(
        ctx: Any, again: Any, values: Any, constant: Sequence[Tensor], *tensors: Tensor
    ) -> Any:
        ctx.again, ctx.operations = again, getattr(again, "operations", frozenset())
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constant)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        given = [i for i, c in enumerate(cotangents) if c is not None]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        pullback = _Pullback(ctx.again, given, wanted)
        tensors = [*(cotangents[i] for i in given), *ctx.saved_tensors]
        with torch.no_grad():
            grads = pullback(*tensors)
        if torch.is_grad_enabled():
            grads = attached(pullback, grads, tensors, [False] * len(grads))
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted, grads, strict=True):
            result[3 + i] = grad
        return tuple(result)


@dataclass(eq=False)
class _Pullback:
    """V(c, x) = J_f(x)^T c, to be differentiated itself where gradients are on.

    Args:
        again: f.
        given: which of its outputs have a cotangent.
        wanted: which of its arguments have a derivative; `None` stands for one without a path.
    """

    again: Callable[..., Sequence[Tensor | None]]
    given: list[int]
    wanted: list[int]

    def __call__(self, *tensors: Tensor) -> list[Tensor | None]:
        twice = torch.is_grad_enabled()
        cotangents, inputs = tensors[: len(self.given)], list(tensors[len(self.given) :])
        if not twice:
            inputs = [t.detach() for t in inputs]
            for i in self.wanted:
                inputs[i].requires_grad_()
        kernels = twice_differentiable() if twice else eager()
        with torch.enable_grad(), kernels, unobserved():
            outputs = self.again(*inputs)
            ends = [(outputs[i], c) for i, c in zip(self.given, cotangents, strict=True)]
            linked = [(y, c) for y, c in ends if y is not None and y.requires_grad]
            wanted = [inputs[i] for i in self.wanted]
            if not linked:
                return [None] * len(wanted)
            ys, cs = zip(*linked, strict=True)
            return list(torch.autograd.grad(ys, wanted, cs, create_graph=twice, allow_unused=True))


def attached(
    again: Any,
    outputs: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    constant: Sequence[bool],
) -> list[Any]:
    """Return the values of outputs, on the graph of the tensors by `again` unless constant."""
    # In memory of their own, which neither an argument nor another output shares.
    storages = {t.untyped_storage()._cdata for t in tensors}
    values: list[Tensor | None] = []
    for output in outputs:
        if output is None:
            values.append(None)
            continue
        storage = output.untyped_storage()._cdata
        values.append(output.detach().clone() if storage in storages else output.data)
        storages.add(storage)
    off = [value for value, is_constant in zip(values, constant, strict=True) if is_constant]
    apply: Any = _Remat.apply
    return list(apply(again, tuple(values), off, *tensors))


def hidden() -> Any:
    """Hide the block's calls from modes that record the calls of a loss, or replay them."""
    return torch._C.DisableTorchFunction()


# Not a ContextVar: autograd recomputes blocks of a GPU in threads of its own, which see none.
_measurements: list[list[int]] = []


@contextmanager
def measured_graphs() -> Iterator[list[int]]:
    """Give the block the bytes of each graph that is built and dropped inside it."""
    sizes: list[int] = []
    _measurements.append(sizes)
    try:
        yield sizes
    finally:
        _measurements.pop()


@contextmanager
def unobserved() -> Iterator[None]:
    """Hide a graph that is dropped at once from hooks that count, or move, what a graph saves."""
    measurements = _measurements[-1] if _measurements else None
    if measurements is None and torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        yield
        return
    storages = Storages()
    with storages.saved():
        yield
    if measurements is not None:
        measurements.append(storages.peak)
