"""Continuing a run: it must be the one that was started, and may take more outer steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metaopt.runs import checkpoint, provenance
from metaopt.runs.errors import ConfigError

STEPS = ("outer_steps", "engine.outer_steps")
"""Keys that hold the number of outer steps, the one setting that a continued run may change."""


def started_with(folder: Path) -> dict[str, Any] | None:
    """Return the config that the run of a folder was started with, or `None` where none is kept."""
    path = folder / "provenance.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return record.get("config")


def refuse_edited(folder: Path, config: Mapping[str, Any], extending: bool = False) -> None:
    """Raise a `ConfigError` if a run's config.yaml is not what the run was started with.

    Args:
        folder: the run's.
        config: what config.yaml says.
        extending: whether a number of outer steps is given, so that the one in `config` is moot.
    """
    before = started_with(folder)
    if before is None:
        return
    changed = provenance.differences(before, config)
    if extending:
        changed = [line for line in changed if line.partition(":")[0] not in STEPS]
    if not changed:
        return
    advice = "Put the old values back, or start a new run with the new ones."
    if any(line.partition(":")[0] in STEPS for line in changed):
        advice += f" More outer steps: {provenance.resume_command(folder)} outer_steps=<number>."
    raise ConfigError(
        f"{folder / 'config.yaml'} was edited since the run was started (then -> now):\n"
        + "".join(f"  {line}\n" for line in changed[:8])
        + f"Nothing was computed. A run continues with what it was started with. {advice}"
    )


def refuse_foreign(folder: Path, state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` if the state of a checkpoint in `folder` is of another run's config."""
    changed = provenance.differences(state.get("config", {}), config)
    changed = [line for line in changed if line.partition(":")[0] not in STEPS]
    if changed:
        path = folder / f"step_{state['engine']['outer_step']:08d}.pt"
        raise ConfigError(
            f"{path} is a checkpoint of a run of another config (its -> this run's):\n"
            + "".join(f"  {line}\n" for line in changed[:8])
            + "Nothing was computed. Delete it to continue from the checkpoint before it."
        )


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config of a run into its folder, unless it is there."""
    path, text = folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False)
    if not path.exists() or path.read_text() != text:
        checkpoint.write_text(path, text)


def extended(folder: Path, config: dict[str, Any], outer_steps: int | None) -> dict[str, Any]:
    """Return the config with another number of outer steps; itself where there is none to set.

    What a config has computed from the number of outer steps, such as the length of a schedule,
    stays.

    Raises:
        ValueError: the number is below what the run has taken.
    """
    before = started_with(folder) or config
    if outer_steps is None or outer_steps == config["outer_steps"] == before["outer_steps"]:
        return config
    saved = checkpoint.steps(folder / "checkpoints")
    done = saved[-1][0] if saved else 0
    if outer_steps < done:
        raise ValueError(
            f"outer_steps={outer_steps} is below the {done} that {folder} has taken; "
            f"pass a larger number."
        )
    longer = {**config, "outer_steps": outer_steps}
    if isinstance(config.get("engine"), dict):
        longer["engine"] = {**config["engine"], "outer_steps": outer_steps}
    return longer
