"""The keys of every run: what each must be, and which of those given have no effect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metaopt.cli import folders
from metaopt.cli.checks import wrong_type
from metaopt.cli.mistakes import nearest
from metaopt.engine import Engine
from metaopt.engine.annotations import fits, hints
from metaopt.runs.errors import ConfigError
from metaopt.runs.run import SETTINGS, Run, prepare_torch

PARTS = ("problem", "estimator", "optimizer", "engine", "tracker")

KEYS: dict[str, Any] = {
    "name": str, "label": str | None, "objective": str | None, "inner_steps": int,
    "outer_lr": float,
    **{name: hints(Engine)[name] for name in ("seed", "outer_steps", "limits")},
    **{name: hints(Run)[name] for name in SETTINGS},
    **hints(prepare_torch),
}  # fmt: skip
KEYS.pop("return")


def check_keys(config: Mapping[str, Any]) -> None:
    """Check the keys of a resolved config that are not a part's own.

    Raises:
        ConfigError: names the key, its value, and what is legal.
    """
    for key in (*PARTS, *KEYS):
        if key not in config:
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
        if not fits(config[key], hint):
            raise wrong_type(key, config[key], hint)
    path = PurePath(config["name"])
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"name must be a path below the folder of the results, such as ridge/first; got "
            f"{config['name']!r}."
        )


def refuse_unread(config: DictConfig, overrides: Sequence[str]) -> None:
    """Raise a `ConfigError` for a key that a command line adds, or a device, that nothing reads."""
    text = OmegaConf.to_yaml(config)
    read = set(re.findall(r"\$\{(?:[\w.]+:)?(\w+)", text))
    groups = folders.groups()
    added = [o.partition("=")[0][1:] for o in overrides if o.startswith("+")]
    for key in (key.lstrip("+") for key in added):
        if re.fullmatch(r"\w+", key) and not {key} & {*read, *groups, *KEYS}:
            close = nearest(key, [*groups, *KEYS])
            raise ConfigError(f"There is no key {key!r}, and nothing of this run reads it.{close}")
    device = config.get("device")
    if "device" not in read and isinstance(device, str) and device != "cpu":
        raise ConfigError(
            f"device={device}: nothing of this run reads it, so that it would run on "
            f"the CPU. Drop it."
        )
