"""Continuing a run: it must be the one that was started, and may take more outer steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metaopt.files.errors import ConfigError, FolderError, listed
from metaopt.files.reading import LOG, damaged, numbered, read_bytes
from metaopt.files.writing import write_text
from metaopt.runs import checkpoint, configs, provenance
from metaopt.runs.folder import read_config, result_of, started_with

STEPS = ("outer_steps", "engine.outer_steps")
"""Keys that hold the number of outer steps, the one setting that a continued run may change."""


class EditedError(FolderError):
    """The config.yaml of a run is not what the run was started with."""


class Rest(NamedTuple):
    """What a run in a folder has left to do.

    Args:
        config: what it continues with.
        done: whether it is finished, so that there is nothing to do.
    """

    config: dict[str, Any]
    done: bool


def rest_of(folder: Path, outer_steps: int | None) -> Rest:
    """Return what is left of the run of a folder, which may take another number of outer steps.

    Raises:
        FolderError: the folder holds no run, its config.yaml was edited, or a file is damaged.
        ConfigError: the number is below what the run has taken.
    """
    config = read_config(folder)
    refuse_edited(folder, config, extending=outer_steps is not None)
    longer = extended(folder, config, outer_steps)
    return Rest(longer, longer is config and result_of(folder) is not None)


def refuse_edited(folder: Path, config: Mapping[str, Any], extending: bool = False) -> None:
    """Raise an `EditedError` if a run's config.yaml is not what the run was started with.

    Edits that leave the numbers as they are are said on the standard error.

    Args:
        folder: the run's.
        config: what config.yaml says.
        extending: whether a number of outer steps is given, so that the one in `config` is moot.
    """
    before = started_with(folder)
    if before is None:
        return
    changed = configs.differences(before, config)
    if extending:
        changed = [line for line in changed if line.partition(":")[0] not in STEPS]
    path = folder / "config.yaml"
    if changed:
        advice = "Put the old values back, or start a new run with the new ones."
        if any(line.partition(":")[0] in STEPS for line in changed):
            command = provenance.resume_command(folder)
            advice += f" More outer steps: {command} outer_steps=<number>."
        raise EditedError(
            f"{path} was edited since the run was started (then -> now):\n{listed(changed)}\n"
            f"Nothing was computed: a run continues with what it was started with. {advice}"
        )
    if harmless := configs.differences(before, config, relevant=False):
        print(f"{path} was edited since the run was started (then -> now), which leaves the "
              f"numbers as they are:\n{listed(harmless)}", file=sys.stderr)  # fmt: skip


def refuse_foreign(folder: Path, state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise a `FolderError` if the state of a checkpoint in `folder` is of another run's config."""
    changed = configs.differences(state["config"], config)
    changed = [line for line in changed if line.partition(":")[0] not in STEPS]
    if changed:
        path = folder / f"step_{state['engine']['outer_step']:08d}.pt"
        raise FolderError(
            f"{path} is a checkpoint of a run of another config (its -> this run's):\n"
            f"{listed(changed)}\n"
            f"Nothing was computed. Delete it to continue from the checkpoint before it."
        )


def log_until(folder: Path, state: Mapping[str, Any]) -> bytes:
    """Return what metrics.jsonl held when a checkpoint was written; nothing where it is deleted.

    Raises:
        DamagedFileError: the file is no longer what was written until then.
    """
    path, log = folder / "metrics.jsonl", state["log"]
    try:
        content = read_bytes(path, LOG)[: log["bytes"]]
    except FileNotFoundError:
        if log["bytes"]:
            print(f"{path} is missing; what it held is lost.", file=sys.stderr)
        return b""
    if sha256(content).hexdigest() != log["sha256"]:
        numbered(content, path)  # which names the line, where it is not a record
        step = state["engine"]["outer_step"]
        raise damaged(path, f"it is not what was written until outer step {step}", LOG)
    return content


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config of a run into its folder, unless it is there."""
    path, text = folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def taken(folder: Path, config: Mapping[str, Any], whole: bool = True) -> int:
    """Return the outer step that a run continues from; `whole` as for `newest_readable`.

    A file of more steps than were asked for is no checkpoint of the run.
    """
    most = max(c["outer_steps"] for c in (config, started_with(folder) or config))
    return checkpoint.newest_readable(folder / "checkpoints", most, whole)


def extended(folder: Path, config: dict[str, Any], outer_steps: int | None) -> dict[str, Any]:
    """Return the config with another number of outer steps; itself where there is none to set.

    What a config has computed from the number of outer steps, such as the length of a schedule,
    stays.

    Raises:
        ConfigError: the number is below what the run has taken.
    """
    before = started_with(folder) or config
    if outer_steps is None or outer_steps == config["outer_steps"] == before["outer_steps"]:
        return config
    done = taken(folder, config)
    if outer_steps < done:
        raise ConfigError(
            f"outer_steps={outer_steps} is below the {done} that {folder} has taken; "
            f"pass a larger number."
        )
    outer_steps = int(outer_steps)  # of numpy, too
    longer = {**config, "outer_steps": outer_steps}
    if isinstance(config.get("engine"), dict):
        longer["engine"] = {**config["engine"], "outer_steps": outer_steps}
    return longer
