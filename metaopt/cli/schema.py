"""Checks a config against the constructors it names, before any of them runs.

The annotations of a constructor are its schema: there is no second description to keep in step.
"""

from __future__ import annotations

import inspect
import pydoc
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from metaopt.cli import folders
from metaopt.engine.annotations import describe, fits, hints
from metaopt.files.errors import ConfigError, nearest

SPECIAL = {
    "_target_": str, "_partial_": bool, "_recursive_": bool, "_args_": list,
    "_convert_": Literal["none", "partial", "object", "all"],
}  # fmt: skip
"""Keys of a node that hydra reads."""


class ArgumentError(ConfigError):
    """A node has an argument that its constructor does not take."""


def check(config: Mapping[str, Any]) -> None:
    """Check every `_target_` of a nested config: its name, its arguments, their types.

    Raises:
        ConfigError: names the key, its value, and what is legal.
    """
    _walk(config, "", config)


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
    for key, hint in SPECIAL.items():
        if key in node and not fits(node[key], hint):
            raise wrong_type(f"{path}.{key}", node[key], hint)
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
    for key, hint in hints(target).items():
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


def wrong_type(path: str, value: Any, hint: Any) -> ConfigError:
    """Return the error that names a key, what it must be, and what was given."""
    shown = "null" if value is None else repr(value)
    legal = describe(hint, "a node with a _target_ that makes a {}")
    return ConfigError(f"{path} must be {legal}; got {shown}.")
