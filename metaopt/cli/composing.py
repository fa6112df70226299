"""Composing the shipped configuration, and what to say when that fails."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metaopt.cli import folders, mistakes
from metaopt.cli.seeds import problems
from metaopt.files.errors import ConfigError
from metaopt.runs.errors import is_out_of_memory

COMPOSITION = (HydraException, OmegaConfBaseException)
"""What hydra and omegaconf raise about a config."""


def parts(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return what the nodes of a resolved config make, the problem before everything else.

    Of a config with several seeds `problem` is a list with the problem of each.

    An argument `{_method_: name}` is that method of the problem, which so brings its own proposer:
    `optimizer.proposer: {_method_: propose}`.

    Raises:
        ConfigError: the problem has no such method.
    """
    each = [_made(config, "problem", node) for node in problems(config)]
    made = {"problem": each if config.get("seeds") else each[0]}
    for name in names:
        if name != "problem":
            methods, rest = _methods(config[name], each[0])
            made[name] = _made(config, name, rest, **methods)
    return made


def _made(whole: Mapping[str, Any], name: str, config: Any, **arguments: Any) -> Any:
    """Return what a node makes; a message of one of its parts names keys as they are typed."""
    try:
        return instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        inside = cause(error)
        place = re.search(r"full_key: (\S+)", str(error))
        keys = [name, *(place[1].split(".") if place else ())]
        node = config
        for key in keys[1:]:
            node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and len(inside.args) == 1:
            # inner_steps=, seed= and other keys of the whole are typed as they stand.
            names = [key for key in node if key not in whole]
            inside.args = (with_keys(str(inside.args[0]), ".".join(keys), names),)
        if _is_raw(inside):
            raise ConfigError(
                f"{'.'.join(keys)} cannot be made of its arguments: {type(inside).__name__}: "
                f"{inside}\nMETAOPT_DEBUG=1 prints the traceback."
            ) from error
        raise


def _is_raw(error: BaseException) -> bool:
    """Return whether an error is not worded for a user: of torch, transformers, a bug."""
    worded = (ValueError, ImportError, FileNotFoundError)
    own = type(error).__module__.startswith("metaopt.")
    known = own or isinstance(error, worded) or getattr(error, "errno", None) is not None
    return not (known or is_out_of_memory(error))


def with_keys(message: str, prefix: str, names: Iterable[str]) -> str:
    """Return a message about arguments in which their names are the keys that a command takes.

    Replaced are `limit=` anywhere and `limit must ...` where a sentence begins with it.

    Example:
        >>> with_keys("limit must be >= 1. Set leaks=drop.", "problem.data", ["limit", "leaks"])
        'problem.data.limit must be >= 1. Set problem.data.leaks=drop.'
    """
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    given = rf"(?<![\w.=/@-])({name})(?==[^=])"
    leading = rf"(?:^|(?<=\. ))({name})(?= (?:must|may|needs)\b)"
    return re.sub(f"{given}|{leading}", lambda m: f"{prefix}.{m[1] or m[2]}", message)


def _methods(config: Any, problem: Any) -> tuple[dict[str, Any], Any]:
    """Split the arguments `{_method_: name}` from the rest of a node."""
    if not isinstance(config, Mapping):
        return {}, config
    names = {k: v["_method_"] for k, v in config.items() if isinstance(v, dict) and "_method_" in v}
    for argument, name in names.items():
        if not callable(getattr(problem, name, None)):
            raise ConfigError(
                f"{argument} is the method {name!r} of the problem, and "
                f"{type(problem).__name__} has none; choose another optimizer or problem."
            )
    methods = {k: getattr(problem, name) for k, name in names.items()}
    return methods, {k: v for k, v in config.items() if k not in names}


def cause(error: BaseException) -> BaseException:
    """Return the error inside hydra's, or a `ConfigError` for one of hydra's own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, COMPOSITION) or "Config group override" in str(error):  # a bare ValueError
        return ConfigError(explanation(error))
    return error


def explanation(error: BaseException) -> str:
    """Return a message about a config that could not be composed."""
    text = str(error)
    if isinstance(error, OverrideParseException) and "=" in error.override:
        return mistakes.unreadable(error.override, text.partition("\nSee http")[0])
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return mistakes.unknown_key(unknown[1], mistakes.given())
    if missing_value := re.search(r"Missing mandatory value[^\n]*\n\s*full_key: (\S+)", text):
        key = missing_value[1]
        if key.startswith("hydra."):  # of folders, which are named after the problem
            return (
                "name must be given: it names the folder of the results. A problem's YAML sets it; "
                "choose one with problem=NAME, or add name=VALUE."
            )
        return f"{key} must be given: add {key}=VALUE."
    if single := re.search(r"Error parsing override '([\w./-]+)'\s+missing EQUAL", text):
        return mistakes.without_value(single[1])
    if "Config group override must be" in text:
        return mistakes.no_option(mistakes.given())
    if merged := re.search(r"Error merging override (([^=\n]+)=.*)", text):
        if legal := re.search(r"expected one of (\[.*\])", str(error.__cause__)):
            return f"{merged[1]} must be one of {legal[1]}."
        return f"{merged[1]} cannot take the place of what {merged[2]} is: a node with keys."
    if absent := re.search(r"Interpolation key '([^']+)' not found(?:\n *full_key: (\S+))?", text):
        key = f" at {absent[2]}" if absent[2] else ""
        return f"There is no key {absent[1]!r}, and the config refers to it{key}."
    if again := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"The key {again[1]!r} is there already; give it without the +."
    if again := re.search(r"Multiple values for (\S+)\. ", text):
        return f"{again[1]} is chosen already; give it without the +."
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing and isinstance(error, MissingConfigException):
        if missing[1].startswith("hydra/launcher/"):
            return mistakes.no_launcher(missing[1].rpartition("/")[2])
        group, _, option = missing[1].partition("/")
        return mistakes.unknown_option(group, option, folders.groups().get(group, {}))
    lines = [line.strip() for line in text.splitlines() if not line.startswith("See http")]
    return "\n  ".join(line for line in lines if line)


def cell(name: str) -> str:
    """Return the folder's name of a sweep's cell: its overrides, with a hash where they are long.

    Characters other than letters, digits and `_ . = , + - @` become `-`. Two cells that meet in one
    folder all the same are distinguished by the hashes of their configs, and the second is refused.
    """
    plain = re.sub(r"[^\w.=,+@-]", "-", name) or "default"
    if len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("cell", cell, replace=True)
OmegaConf.register_new_resolver("when", lambda key, value: value if key else None, replace=True)
OmegaConf.register_new_resolver("percent", lambda share: f"{100 * share:g} %", replace=True)
