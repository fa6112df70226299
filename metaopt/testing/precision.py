"""Twins of a problem: in float64, and with every batch the same."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from metaopt.engine.gradient_problem import Batch, GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import Draw, fold, generator


def in_float64(problem: GradientProblem) -> GradientProblem:
    """Return a copy of the problem that computes in float64.

    Tensors, modules and dtypes among its attributes are cast, also inside dicts, lists and tuples,
    tensors and modules in objects of its own package or of metaopt, and its batches and first
    values. Batches are drawn as the problem draws them, in its own precision, and cast then: the
    twin trains on the same numbers.
    """
    twin, cast = copy.copy(problem), _Cast(type(problem))
    for name, value in vars(problem).items():
        vars(twin)[name] = cast(value)
    vars(twin)["compute_dtype"] = None
    for name in ("inner_batch", "outer_batch"):
        vars(twin)[name] = functools.partial(_cast_result, problem, getattr(problem, name))
    for name in ("init_outer", "init_params", "init_buffers", "init_state"):
        vars(twin)[name] = functools.partial(_cast_result, problem, getattr(twin, name))
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


def float64_loop(problem: GradientProblem) -> tuple[InnerLoop, str]:
    """Return the inner level in float64 and "", or as it is and why it does not run in float64."""
    try:
        loop = InnerLoop(in_float64(problem))
        outer = loop.problem.init_outer(generator(0))
        inner = loop.start(outer, None, 0)
        with torch.no_grad():
            loss = loop.inner_value(outer, inner.at(inner.params), loop.draw(inner, 0, 0))
            require_float64(loop.problem, "inner_loss", loss)
            loss = loop.outer_value(outer, inner, loop.outer_draw(inner, 0))
            require_float64(loop.problem, "outer_loss", loss)
    except (ValueError, TypeError, RuntimeError) as error:
        return InnerLoop(problem), failure(error)
    return loop, ""


def cast_like(state: Any, model: Any) -> Any:
    """Return a tree of tensors in the dtypes of another one of the same names."""
    if isinstance(state, GradientState):
        return GradientState(*map(cast_like, state, model))
    if isinstance(state, dict):
        return {k: cast_like(v, model[k]) for k, v in state.items()}
    return state.to(model.dtype) if isinstance(state, Tensor) else state


def failure(error: BaseException) -> str:
    """Return an error as one line: the sentence of a refusal, or the name and the first line."""
    line = (str(error).splitlines() or [""])[0]
    sentence = isinstance(error, (ValueError, TypeError)) and line
    return line if sentence else f"{type(error).__name__}: {line}"


def short(dtype: torch.dtype) -> str:
    """Return the name of a dtype as people write it."""
    return str(dtype).removeprefix("torch.")


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


def _cast_result(problem: GradientProblem, method: Callable[..., Any], *arguments: Any) -> Any:
    return _Cast(type(problem))(method(*arguments))


class _Cast:
    """Casts a tree to float64; what two places share stays shared.

    Args:
        kind: objects of its package, or of metaopt, are copied and their attributes cast.
    """

    def __init__(self, kind: type) -> None:
        self._packages = {_package(kind), _package(GradientProblem)}
        self._copies: dict[int, Any] = {}

    def __call__(self, node: Any) -> Any:
        if isinstance(node, torch.dtype):
            return torch.float64 if node.is_floating_point else node
        if isinstance(node, Module):
            return copy.deepcopy(node, self._copies).double()
        if isinstance(node, Tensor):
            return node.double() if node.is_floating_point() else node
        if isinstance(node, dict):
            return {k: self(v) for k, v in node.items()}
        if isinstance(node, (list, tuple)):
            parts = [self(v) for v in node]
            return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
        if hasattr(node, "__dict__") and _package(type(node)) in self._packages:
            return self._object(node)
        return node

    def _object(self, node: Any) -> Any:
        if id(node) not in self._copies:
            twin = self._copies[id(node)] = copy.copy(node)
            for name, value in vars(node).items():
                # What draws initial weights in a dtype draws others in another one.
                vars(twin)[name] = value if isinstance(value, torch.dtype) else self(value)
        return self._copies[id(node)]


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
