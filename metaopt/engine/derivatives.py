"""First derivatives, as `torch.autograd.grad` takes them, without what it checks in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph
from torch.overrides import has_torch_function

_RUN: Any = getattr(graph, "_engine_run_backward", None)
"""What `torch.autograd.grad` calls; `None` in a torch that has another."""


def vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """Return (d outputs / d inputs)^T vectors; zeros where nothing connects them.

    The same numbers and graph as `torch.autograd.grad` with `materialize_grads=True`. That compares
    shapes by the rules of symbolic shapes: 8 us for a scalar and 21 us for four tensors, of 40 for
    a reverse pass through a small graph.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> vjp([x.square().sum()], [x])
        (tensor([2., 4.]),)

    Args:
        outputs: each on a graph.
        inputs: at least one, each on a graph.
        vectors: one of the shape of each output; `None` for 1 of each, which is then a scalar.
        create_graph: whether the result can be differentiated.
        retain_graph: whether the graph of the outputs stays; by default with `create_graph` alone.

    Raises:
        RuntimeError: what `torch.autograd.grad` raises, such as for a vector of another shape.
    """
    ends, starts = tuple(outputs), tuple(inputs)
    seeds = tuple(map(torch.ones_like, ends)) if vectors is None else tuple(vectors)
    # Of a vector that broadcasts the engine would take the sum.
    odd = [v.shape for v in seeds] != [y.shape for y in ends]
    if odd or _RUN is None or has_torch_function(ends + starts):
        return torch.autograd.grad(
            ends, starts, vectors, retain_graph, create_graph, materialize_grads=True
        )
    retain = create_graph if retain_graph is None else retain_graph
    grads = _RUN(ends, seeds, retain, create_graph, starts, True, accumulate_grad=False)
    return tuple(
        torch.zeros_like(x, requires_grad=create_graph) if g is None else g
        for g, x in zip(grads, starts, strict=True)
    )
