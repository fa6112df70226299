"""Composing the shipped configuration, and what to say when that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metaopt.cli import help as options
from metaopt.cli.checks import nearest
from metaopt.runs import provenance
from metaopt.runs.errors import ConfigError

CONFIG = "train"
COMPOSITION = (HydraException, OmegaConfBaseException)
"""What hydra and omegaconf raise about a config."""


def parts(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return what the nodes of a resolved config make, the problem before everything else.

    An argument `{_method_: name}` is that method of the problem, which so brings its own proposer:
    `optimizer.proposer: {_method_: propose}`.

    Raises:
        ConfigError: the problem has no such method.
    """
    made = {"problem": instantiate(config["problem"], _convert_="all")}
    for name in names:
        if name != "problem":
            own, rest = _methods(config[name], made["problem"])
            made[name] = instantiate(rest, _convert_="all", **own)
    return made


def _methods(config: Any, problem: Any) -> tuple[dict[str, Any], Any]:
    """Split the arguments `{_method_: name}` from the rest of a node."""
    if not isinstance(config, Mapping):
        return {}, config
    wanted = {
        k: v["_method_"] for k, v in config.items() if isinstance(v, dict) and "_method_" in v
    }
    for argument, name in wanted.items():
        if not callable(getattr(problem, name, None)):
            raise ConfigError(
                f"{argument} is the method {name!r} of the problem, and "
                f"{type(problem).__name__} has none; choose another optimizer or problem."
            )
    found = {k: getattr(problem, name) for k, name in wanted.items()}
    return found, {k: v for k, v in config.items() if k not in wanted}


@contextmanager
def composing() -> Iterator[None]:
    """Make the shipped configuration the one that `hydra.compose` reads."""
    folder = str(options.folder())
    with initialize_config_dir(config_dir=folder, job_name="metaopt", version_base="1.3"):
        yield


def cause(error: BaseException) -> BaseException:
    """Return the error inside hydra's, or a `ConfigError` for one of hydra's own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return ConfigError(explanation(error))
    return error


def explanation(error: BaseException) -> str:
    """Return a message about a config that could not be composed."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    missing = re.search(r"Could not find '([^']+)'", text)
    if unknown:
        return f"There is no key {unknown[1]!r}.{_suggest(unknown[1])} `metaopt --help` lists them."
    if missing and isinstance(error, MissingConfigException):
        group, _, option = missing[1].partition("/")
        known = options.groups(options.folder()).get(group, {})
        listed = ", ".join(known) or "none"
        return f"There is no {group}={option}.{nearest(option, known)} Options: {listed}."
    lines = [line.strip() for line in text.splitlines() if not line.startswith("See http")]
    return "\n  ".join(line for line in lines if line)


def _suggest(key: str) -> str:
    """Return " Did you mean ...?" for the nearest key of the config that was to be changed."""
    overrides = [a for a in sys.argv[1:] if "=" in a and not a.startswith((f"{key}=", "-"))]
    known = [*options.groups(options.folder())]
    try:
        with composing():
            config: Any = OmegaConf.to_container(compose(CONFIG, overrides))
    except (HydraException, OmegaConfBaseException):
        known += [name for name, _, _ in options.keys(options.folder())]
    else:
        known += list(dict(provenance.flatten(config)))
    return nearest(key, known)


def cell(name: str) -> str:
    """Return the folder's name of a sweep's cell: its overrides, with a hash where they are long.

    Characters other than letters, digits and `_ . = , + - @` become `-`. Two cells that meet in one
    folder all the same are told apart by the hashes of their configs, and the second is refused.
    """
    plain = re.sub(r"[^\w.=,+@-]", "-", name) or "default"
    if len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("cell", cell, replace=True)
