"""The keys of every run: what each must be, and which of those given have no effect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metaopt.cli import folders
from metaopt.cli.schema import wrong_type
from metaopt.engine import Engine
from metaopt.engine.annotations import fits, hints
from metaopt.files.errors import ConfigError, nearest
from metaopt.runs.configs import OPTIONAL
from metaopt.runs.run import SETTINGS, Run
from metaopt.runs.selection import Selection
from metaopt.runs.torch_settings import prepare_torch

PARTS = ("problem", "estimator", "optimizer", "engine", "tracker")

KEYS: dict[str, Any] = {
    "name": str, "label": str | None, "objective": str | None, "inner_steps": int,
    "outer_lr": float, "tasks": int | None,
    **{name: hints(Engine)[name] for name in ("seed", "seeds", "outer_steps", "limits")},
    **{name: hints(Run)[name] for name in SETTINGS},
    **hints(prepare_torch),
    **hints(Selection),
}  # fmt: skip
KEYS.pop("return")

KEYS_OF_RUN = (
    *(k for k in KEYS if k not in ("inner_steps", "outer_lr", "tasks", "device")),
    "ranks",
)
"""Those that every run reads itself; the others have an effect where a part refers to them."""


def check_keys(config: Mapping[str, Any]) -> None:
    """Check the keys of a resolved config that are not a part's own.

    Raises:
        ConfigError: names the key, its value, and what is legal.
    """
    for key in (*PARTS, *KEYS):
        if key not in (*config, *OPTIONAL):
            raise ConfigError(f"{key} is missing: a run cannot do without it. Drop ~{key}.")
    for name in PARTS:
        part = config[name]
        optional = name == "tracker" and part is None
        if not optional and not (isinstance(part, Mapping) and "_target_" in part):
            raise ConfigError(
                f"{name} must be an option of its group or a node with a _target_; got "
                f"{'null' if part is None else repr(part)}. `metaopt --help {name}` lists the "
                f"options."
            )
    for key, hint in KEYS.items():
        if not fits(config.get(key), hint):
            raise wrong_type(key, config.get(key), hint)
    check_name(config["name"])


def check_name(name: str) -> None:
    """Raise a `ConfigError` for a name that is no path below the folder of the results."""
    path = PurePath(name)
    blank = not path.parts or not all(part.strip() for part in path.parts)
    if blank or path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"name must be a path below the folder of the results, such as ridge/first; got "
            f"{name!r}."
        )


def refuse_unread(config: DictConfig, overrides: Sequence[str], shared: bool) -> None:
    """Raise a `ConfigError` for a key that a command line sets, or a device, that nothing reads.

    Args:
        config: the composed config, with its interpolations.
        overrides: what the command line changed.
        shared: whether the overrides are those of a table, of which some methods read a key that
            others do not.
    """
    read, groups = _read(config), folders.groups()
    words = dict.fromkeys(o.partition("=")[0] for o in overrides if o[0] != "~")
    for word in words:
        key, elsewhere = word.lstrip("+"), shared and not word.startswith("+")
        if not re.fullmatch(r"\w+", key) or key in (*read, *groups, *KEYS_OF_RUN):
            continue
        if elsewhere and key in (*config, "methods"):
            continue
        if key not in KEYS:
            close = nearest(key, [*groups, *KEYS])
            raise ConfigError(f"There is no key {key!r}, and nothing of this run reads it.{close}")
        if key != "device":
            raise ConfigError(f"{key}={config[key]}: nothing of this run reads it.{_readers(key)}")
    device = config.get("device")
    if "device" not in read and isinstance(device, str) and device != "cpu":
        raise ConfigError(
            f"device={device}: nothing of this run reads it, so that it would run on "
            f"the CPU. Drop it."
        )


def _read(config: DictConfig) -> set[str]:
    """Return the keys of a config that its parts refer to, directly or through other keys."""
    read, pending = set[str](), {*PARTS, *KEYS_OF_RUN} & {*config}
    while pending:
        read |= pending
        nodes = OmegaConf.to_yaml(OmegaConf.masked_copy(config, list(pending)))
        names = set(re.findall(r"\$\{(?:[\w.]+:)?(\w+)", nodes))
        pending = (names & {*config}) - read
    return read


def _readers(key: str) -> str:
    """Return a sentence that names the options of groups that refer to a key, or nothing."""
    readers = [
        f"{group}={', '.join(names)}"
        for group, options in folders.groups().items()
        if group in PARTS
        if (names := [name for name in options if _refers(folders.file_of(group, name), key)])
    ]
    return f" It is read by {'; '.join(readers)}." if readers else ""


def _refers(path: Path | None, key: str) -> bool:
    text = "" if path is None else path.read_text(encoding="utf-8")
    return re.search(rf"\$\{{(?:[\w.]+:)?{key}\b", text) is not None
