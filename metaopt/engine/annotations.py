"""Annotations as a schema: whether a value can stand for an argument, and what to say if not."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union

NAMES = {
    int: "an integer", float: "a finite number", bool: "true or false", str: "a text",
    Path: "a path", type(None): "null",
}  # fmt: skip

LARGEST = 2**63
"""Where torch's integers end; no argument is meant to be beyond it."""


@cache
def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function's or constructor's arguments; empty where unknown."""
    try:
        if inspect.isclass(target) and dataclasses.is_dataclass(target):
            # Of each class in its own module, where the names of its annotations are.
            known = typing.get_type_hints(target)
            return {f.name: known[f.name] for f in dataclasses.fields(target) if f.init}
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # annotations of other libraries
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value, of Python or read from YAML, can stand for what is annotated `hint`.

    An integer stands for a number, and must be one that torch can hold; numbers are finite; true
    and false stand for nothing but a bool; a node with a `_target_` or a `_method_` stands for
    anything, since what it makes is not known yet.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Mapping) and value.keys() & {"_target_", "_method_"}:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint in (None, type(None)):
        return value is None
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real)
        return number and not isinstance(value, bool) and _representable(value)
    if hint in (bool, str, Path):
        return isinstance(value, (str, Path) if hint is Path else hint)
    kind = origin or hint
    if kind in (Any, object) or not inspect.isclass(kind):
        return True
    if issubclass(kind, Mapping):
        values = arguments[1] if len(arguments) == 2 else Any
        return isinstance(value, Mapping) and all(fits(v, values) for v in value.values())
    if _is_list(kind):
        items = not isinstance(value, (str, Mapping)) and isinstance(value, Sequence)
        return items and (not arguments or all(fits(v, arguments[0]) for v in value))
    # Any other class needs an object; which one, only its user can tell.
    plain = (bool, int, float, str, type(None), Mapping, list, tuple)
    return not isinstance(value, plain)


def _is_list(kind: type) -> bool:
    # A tensor and a module of torch are iterable, too, and no list stands for them.
    return issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc")


def _representable(value: Any) -> bool:
    return abs(int(value)) < LARGEST if isinstance(value, Integral) else math.isfinite(value)


def describe(hint: Any, part: str = "a {}") -> str:
    """Return what an annotation asks for, in words; `part` is how a class is asked for."""
    if hint in NAMES:
        return NAMES[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        words: list[str] = []
        for option in (describe(option, part) for option in arguments):
            if not any(f" or {word}".endswith(f" or {option}") for word in words):
                words.append(option)  # not "a mapping to a number or null or null"
        return " or ".join(words)
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    kind = origin or hint
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return "a mapping" + (f" to {describe(arguments[1], part)}" if arguments else "")
    if inspect.isclass(kind) and _is_list(kind):
        return "a list" + (f" of which each is {describe(arguments[0], part)}" if arguments else "")
    return part.format(getattr(kind, "__name__", kind))


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise a `TypeError` unless the arguments of a call have the types they are annotated with."""
    for name, hint in hints(function).items():
        if name in arguments and not fits(arguments[name], hint):
            raise TypeError(
                f"{function.__name__} needs {name} to be {describe(hint)}; got {arguments[name]!r}."
            )
