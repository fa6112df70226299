"""Twins of a problem: in float64, and with every batch the same."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from metaopt.engine.gradient_problem import Batch, GradientProblem
from metaopt.engine.random import Draw, fold


def in_float64(problem: GradientProblem) -> GradientProblem:
    """Return a copy of the problem that computes in float64.

    Tensors, modules and dtypes among its attributes are cast, also inside dicts, lists and tuples,
    and so are its batches and first values. Data in objects of the problem's own is cast when it
    comes as a batch.
    """
    twin = copy.copy(problem)
    copies: dict[int, Any] = {}  # a module that two attributes share stays shared
    for name, value in vars(problem).items():
        vars(twin)[name] = _cast(value, copies)
    batches = ("inner_batch", "outer_batch")
    for name in (*batches, "init_outer", "init_params", "init_buffers", "init_state"):
        vars(twin)[name] = functools.partial(_cast_result, getattr(twin, name))
    return twin


def require_float64(problem: GradientProblem, name: str, value: Any) -> None:
    """Raise a `ValueError` if what a problem in float64 returns as `name` is of another dtype."""
    dtype = value.dtype if isinstance(value, Tensor) else type(value).__name__
    if dtype != torch.float64:
        raise ValueError(
            f"{name} of {type(problem).__name__} is {dtype} where its parameters and batches are "
            f"float64, so that nothing exact can be computed of it. Take .float() and other casts "
            f"out of it, or pass the problem built in float64."
        )


def with_one_batch(problem: GradientProblem, key: int) -> GradientProblem:
    """Return a copy of the problem whose inner batch and whose outer batch never change."""
    twin = copy.copy(problem)
    batches: dict[str, Batch] = {
        "inner_batch": problem.inner_batch(Draw(fold(key, "inner batch"))),
        "outer_batch": problem.outer_batch(Draw(fold(key, "outer batch"), inner_step=None)),
    }
    for name, batch in batches.items():
        vars(twin)[name] = functools.partial(_same, batch)
    return twin


def _same(batch: Batch, draw: Draw) -> Batch:
    return batch


def _cast_result(method: Callable[..., Any], *arguments: Any) -> Any:
    return _cast(method(*arguments), {})


def _cast(node: Any, copies: dict[int, Any]) -> Any:
    if isinstance(node, torch.dtype):
        return torch.float64 if node.is_floating_point else node
    if isinstance(node, Module):
        return copy.deepcopy(node, copies).double()
    if isinstance(node, Tensor):
        return node.double() if node.is_floating_point() else node
    if isinstance(node, dict):
        return {k: _cast(v, copies) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        parts = [_cast(v, copies) for v in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    return node
