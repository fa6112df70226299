"""Checks a config against the constructors it names, before any of them runs.

The annotations of a constructor are its schema: there is no second description to keep in step.
"""

from __future__ import annotations

import inspect
import pydoc
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from metaopt.cli import folders
from metaopt.cli.mistakes import nearest
from metaopt.runs.errors import ConfigError

SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


class ArgumentError(ConfigError):
    """A node has an argument that its constructor does not take."""


def check(config: Mapping[str, Any]) -> None:
    """Check every `_target_` of a nested config: its name, its arguments, their types.

    Raises:
        ConfigError: names the key, its value, and what is legal.
    """
    _walk(config, "", config)


def check_call(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check top-level keys against the annotations of the function that takes them."""
    for name, hint in _hints(target).items():
        if name in arguments and not fits(arguments[name], hint):
            raise wrong_type(name, arguments[name], hint)


def _walk(node: Any, path: str, root: Mapping[str, Any]) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_target(node, path, root)
        for key, value in node.items():
            _walk(value, f"{path}.{key}" if path else str(key), root)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, value in enumerate(node):
            _walk(value, f"{path}[{i}]", root)


def _check_target(node: Mapping[str, Any], path: str, root: Mapping[str, Any]) -> None:
    target = _locate(node["_target_"], path)
    name = node["_target_"].rpartition(".")[2]
    given = {k: v for k, v in node.items() if k not in SPECIAL}
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # built-in classes have no signature
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key not in parameters and not open_ended:
            raise ArgumentError(
                f"{path}.{key}: {name} has no argument {key!r}.{nearest(key, parameters)}"
                f" It takes {', '.join(parameters) or 'none'}."
            )
    if not node.get("_partial_") and "_args_" not in node:
        _require(parameters, given, path, name)
    for key, hint in _hints(target).items():
        if key in given and not fits(given[key], hint):
            short = key in root and root[key] == given[key]
            raise wrong_type(key if short else f"{path}.{key}", given[key], hint)


def _require(
    parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any], path: str, name: str
) -> None:
    for key, parameter in parameters.items():
        optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if not optional and parameter.default is parameter.empty and key not in given:
            raise ConfigError(f"{path}.{key} is missing: {name} cannot do without it.")


def _locate(name: str, path: str) -> Callable[..., Any]:
    try:
        target = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{path}._target_: {name} cannot be imported: {error.value}") from error
    if not callable(target):
        raise ConfigError(f"{path}._target_: there is nothing to call at {name!r}: {_reason(name)}")
    return target


def _reason(name: str) -> str:
    """Return which part of a dotted name is missing, and where it was looked for."""
    names = name.split(".")
    for count in range(len(names) - 1, 0, -1):
        module = sys.modules.get(".".join(names[:count]))
        if module is not None:
            public = [n for n in vars(module) if not n.startswith("_")]
            return (
                f"{module.__name__} ({getattr(module, '__file__', 'built in')}) has no "
                f"{names[count]!r}.{nearest(names[count], public)}"
            )
    return (
        f"there is no module {names[0]!r} among the installed packages or in "
        f"{', '.join(folders.searched()) or 'any folder of PYTHONPATH'}. --config-dir=CONF adds "
        "the working folder and the parent of CONF."
    )


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # annotations of other libraries
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value read from YAML can stand for an argument annotated `hint`.

    An integer stands for a float; true and false stand for nothing but a bool; a node with a
    `_target_` stands for anything, since what it makes is not known yet.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint in (None, type(None)):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (bool, str, Path):
        return isinstance(value, str if hint is Path else hint)
    kind = origin or hint
    if kind in (Any, object) or not inspect.isclass(kind):
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if issubclass(kind, (Sequence, Iterable)) and kind is not Mapping:
        items = not isinstance(value, (str, Mapping)) and isinstance(value, Sequence)
        return items and (not arguments or all(fits(v, arguments[0]) for v in value))
    return not isinstance(value, (bool, int, float, str, type(None)))


NAMES = {
    int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path",
    type(None): "null",
}  # fmt: skip


def describe(hint: Any) -> str:
    """Return what an annotation asks for, in words."""
    if hint in NAMES:
        return NAMES[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    kind = origin or hint
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return "a mapping"
    if inspect.isclass(kind) and issubclass(kind, (Sequence, Iterable)):
        return "a list" + (f" of which each is {describe(arguments[0])}" if arguments else "")
    return f"a node with a _target_ that makes a {getattr(kind, '__name__', kind)}"


def wrong_type(path: str, value: Any, hint: Any) -> ConfigError:
    """Return the error that names a key, what it must be, and what was given."""
    shown = "null" if value is None else repr(value)
    return ConfigError(f"{path} must be {describe(hint)}; got {shown}.")
