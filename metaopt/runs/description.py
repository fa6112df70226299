"""Objects as configs: what a run that was started from Python can record of its parts."""

from __future__ import annotations

import enum
import functools
import inspect
import json
import pkgutil
import re
from collections.abc import Mapping, Sized
from hashlib import blake2b
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.files.errors import ConfigError, listed
from metaopt.runs.configs import differences

DEPTH = 8
MOST = 1000


def to_config(value: Any, depth: int = DEPTH) -> Any:
    """Return an object as primitives: `{"_class_": class, argument: value}`, nested.

    The arguments are those of the constructor that the object has as attributes of the same name,
    and of a problem those that it was given; `_missing_` names the others. `{"_text_": ...}` stands
    for what cannot be described so, such as a tensor or a closure.
    """
    if isinstance(value, enum.Enum):
        return to_config(value.value, depth)
    if isinstance(value, np.generic):
        return to_config(value.item(), depth)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth == 0 or isinstance(value, Tensor) or (isinstance(value, Sized) and len(value) > MOST):
        return {"_text_": _short(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): to_config(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(v, depth - 1) for v in value]
    if isinstance(value, functools.partial):
        if value.args:
            return {"_text_": _short(value)}
        return {**_callable(value.func, depth), **to_config(value.keywords, depth)}
    if inspect.isroutine(value) or isinstance(value, type):
        return _callable(value, depth)
    return {"_class_": _name(type(value)), **_arguments(value, depth - 1)}


def _callable(value: Any, depth: int) -> dict[str, Any]:
    """Describe a function or a class by its name; a local function or a lambda by what it does."""
    if "<" in _name(value) and inspect.isfunction(value):
        around = to_config(list(inspect.getclosurevars(value).nonlocals.items()), depth - 1)
        around = [around, to_config([value.__defaults__, value.__kwdefaults__], depth - 1)]
        code = json.dumps([_code(value.__code__), around], sort_keys=True, default=str)
        return {"_text_": f"{_name(value)}, {blake2b(code.encode(), digest_size=8).hexdigest()}"}
    return {"_class_": _name(value), "_partial_": True}


def _code(code: CodeType) -> list[Any]:
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_code(constant))
        else:  # a set has another order in each process
            unordered = isinstance(constant, frozenset)
            constants.append(sorted(map(repr, constant)) if unordered else repr(constant))
    return [code.co_code.hex(), list(code.co_names), constants]


def _arguments(value: Any, depth: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    try:
        signature = inspect.signature(type(value))
        positional, keywords = getattr(value, "_constructor_arguments", ((), {}))
        bound = signature.bind_partial(*positional, **keywords)
    except (TypeError, ValueError):
        return arguments
    if hasattr(value, "_constructor_arguments"):
        bound.apply_defaults()
    for name, parameter in signature.parameters.items():
        if not hasattr(value, name) and name not in bound.arguments:
            arguments.setdefault("_missing_", []).append(name)
            continue
        argument = getattr(value, name, bound.arguments.get(name))
        if parameter.kind is parameter.VAR_KEYWORD and isinstance(argument, Mapping):
            arguments |= to_config(argument, depth)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            arguments[name] = to_config(argument, depth)
    return arguments


def from_config(node: Any, what: str) -> Any:
    """Return the object that `to_config` described.

    Raises:
        ConfigError: it cannot be made again; names what must be passed instead.
    """
    if isinstance(node, list):
        return [from_config(item, what) for item in node]
    if not isinstance(node, Mapping):
        return node
    pass_it = f"pass {what}=<the object it was started with>."
    if "_text_" in node:
        raise ConfigError(f"a run's folder cannot hold {node['_text_']} of its {what}; {pass_it}")
    if "_missing_" in node:
        raise ConfigError(
            f"{node['_class_']} does not keep its arguments {', '.join(node['_missing_'])} as "
            f"attributes, so that they are not in the run's folder; {pass_it}"
        )
    arguments = {
        k: from_config(v, what) for k, v in node.items() if k not in ("_class_", "_partial_")
    }
    if "_class_" not in node:
        return arguments
    try:
        target = pkgutil.resolve_name(node["_class_"])
        if node.get("_partial_"):
            return functools.partial(target, **arguments) if arguments else target
        made = target(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the run's {what} cannot be made again from its folder ({error}); {pass_it}"
        ) from error
    if to_config(made) != node:
        raise ConfigError(
            f"the run's {what} made again from its folder differs from the first one; {pass_it}"
        )
    return made


def refuse_other(folder: Path, name: str, recorded: Any, part: Any) -> None:
    """Raise a `ConfigError` if a part is not the one that the run of a folder was started with.

    Args:
        folder: the run's.
        name: of the part, such as "problem".
        recorded: how the first one is described.
        part: what was passed.
    """
    changed = differences({name: recorded}, {name: to_config(part)})
    if changed:
        raise ConfigError(
            f"{folder} was started with another {name}:\n{listed(changed)}\n"
            f"Pass the {name} it was started with, or choose another folder for a new run."
        )


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return f"a tensor of shape {tuple(value.shape)}, {blake2b(data, digest_size=8).hexdigest()}"
    # An address would make equal runs differ.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:80]
