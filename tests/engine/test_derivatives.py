"""`vjp` beside `torch.autograd.grad`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metaopt.engine import derivatives
from metaopt.engine.derivatives import vjp


def graph() -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and inputs, one of which no output depends on."""
    draw = torch.Generator().manual_seed(0)
    x, y, unread = (torch.randn(3, generator=draw, requires_grad=True) for _ in range(3))
    return [(x * y).exp(), (x.sin() @ y.cos()).reshape(1)], [x, y, unread]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("engine", [False, True])
def test_numbers_and_graph_are_those_of_torch(
    create_graph: bool, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine:  # a torch without the function that `torch.autograd.grad` calls
        monkeypatch.setattr(derivatives, "_RUN", None)
    (outputs, inputs), vectors = graph(), [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0])]
    ours = vjp(outputs, inputs, vectors, create_graph=create_graph, retain_graph=True)
    theirs = torch.autograd.grad(
        outputs, inputs, vectors, True, create_graph, materialize_grads=True
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [g.requires_grad for g in ours] == [g.requires_grad for g in theirs]
    assert all(g.requires_grad == create_graph for g in ours)
    if create_graph:
        second = [
            vjp([torch.stack(list(grads)).sum()], inputs[:1], retain_graph=True)[0]
            for grads in (ours, theirs)
        ]
        assert torch.equal(*second)


def test_a_scalar_needs_no_vector_and_its_graph_is_freed() -> None:
    (_, scalar), inputs = graph()
    expected = torch.autograd.grad(scalar, inputs, retain_graph=True, materialize_grads=True)
    assert all(torch.equal(a, b) for a, b in zip(vjp([scalar], inputs), expected, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        vjp([scalar], inputs)


def test_a_vector_of_another_shape_is_refused() -> None:
    outputs, inputs = graph()
    with pytest.raises(RuntimeError, match="shape"):
        vjp(outputs[:1], inputs, [torch.ones(2, 3)])


def test_a_function_mode_sees_the_call() -> None:
    names: list[str] = []

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    (_, scalar), inputs = graph()
    with Calls():
        vjp([scalar], inputs)
    assert "grad" in names
