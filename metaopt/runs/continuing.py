"""Continuing a run: it must be the one that was started, and may take more outer steps.

A run that early stopping has ended may be given more patience: it is then, to the bit, the run that
had it from the start.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metaopt.files.errors import ConfigError, FolderError, FolderInUseError, listed
from metaopt.files.reading import LOG, damaged, numbered, read_bytes
from metaopt.files.writing import write_text
from metaopt.runs import checkpoint, configs, provenance
from metaopt.runs.configs import TOTALS
from metaopt.runs.folder import read_config, result_of, started_with
from metaopt.runs.selection import EarlyStopping, as_keys
from metaopt.runs.stopping import ended_by, stop_of

STEPS = ("outer_steps", "engine.outer_steps")
"""Keys that hold the number of outer steps, which a continued run may change."""

PATIENCE = "early_stopping.patience"
"""The other key that it may change."""


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


def rest_of(folder: Path, outer_steps: int | None, patience: int | None = None) -> Rest:
    """Return what is left of the run of a folder.

    Args:
        folder: the run's.
        outer_steps: how many it is to take, or `None` as many as it was to.
        patience: of its early stopping, or `None` as before.

    Raises:
        FolderError: the folder holds no run, its config.yaml was edited, or a file is damaged.
        ConfigError: a number is below what the run has taken, or would not let it go on.
    """
    config = read_config(folder)
    moot = (*(STEPS if outer_steps is not None else ()), *([PATIENCE] if patience else ()))
    refuse_edited(folder, config, moot)
    longer = extended(folder, config, outer_steps)
    result = result_of(folder)
    if patience is not None:
        longer = _patient(folder, longer, patience)
    elif longer is not config and result and ended_by(result, "early_stopping"):
        raise ConfigError(
            f"{folder} ended early after outer step {result['outer_steps']}: {stop_of(result)}; a "
            f"run of outer_steps={outer_steps} ends there, too. With more patience it goes on: "
            f"{provenance.resume_command(folder)} outer_steps={outer_steps} "
            f"{PATIENCE}=<more than {_patience(as_keys(config['early_stopping']))}>."
        )
    return Rest(longer, longer is config and result is not None)


def _patience(early: Mapping[str, Any]) -> int:
    return int(early.get("patience", EarlyStopping.patience))


def _patient(folder: Path, config: dict[str, Any], patience: int) -> dict[str, Any]:
    """Return the config with another patience; itself where it has that already."""
    early = as_keys(config.get("early_stopping"))
    if early.get("metric") is None:
        raise ConfigError(f"{PATIENCE}={patience}: {folder} was started without early_stopping.")
    before = _patience(early)
    if patience < before:
        raise ConfigError(
            f"{PATIENCE}={patience} is below the {before} of {folder}, which may have gone on "
            f"beyond where it would have ended; pass a larger number."
        )
    if patience == before:
        return config
    return {**config, "early_stopping": {**early, "patience": int(patience)}}


def refuse_edited(folder: Path, config: Mapping[str, Any], moot: Collection[str] = ()) -> None:
    """Raise an `EditedError` if a run's config.yaml is not what the run was started with.

    Edits that leave the numbers as they are are said on the standard error.

    Args:
        folder: the run's.
        config: what config.yaml says.
        moot: keys of which another value is given than that in `config`.
    """
    before = started_with(folder)
    if before is None:
        return
    changed = [
        line for line in configs.differences(before, config) if line.partition(":")[0] not in moot
    ]
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
    changed = [line for line in changed if line.partition(":")[0] not in (*STEPS, PATIENCE)]
    if changed:
        step = state["engine"]["outer_step"]
        path = next(path for n, path in reversed(checkpoint.files(folder)) if n == step)
        raise FolderError(
            f"{path} is a checkpoint of a run of another config (its -> this run's):\n"
            f"{listed(changed)}\n"
            f"Nothing was computed. Delete it to continue from the checkpoint before it."
        )


def refuse_finished(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a `FolderInUseError` if a folder has the result of a config, which was yet to come.

    Another process may have begun and finished the run while this one made its parts.
    """
    result = result_of(folder)
    if result is not None and result.get("config_hash") == configs.config_hash(config):
        raise FolderInUseError(
            f"{folder} was finished by another process in the meantime; nothing was computed."
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


def extensions(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was continued with beside what it was started with, by key.

    Args:
        before: the record of where the run was started, and of earlier extensions.
        config: what it continues with.
    """
    known = dict(before.get("extended") or {})
    if "config" not in before:
        return known
    then, now = (dict(configs.flatten(part)) for part in (before["config"], config))
    keys = [key for key in (STEPS[0], PATIENCE) if then.get(key) != now.get(key)]
    return known | {key: now.get(key) for key in keys}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config of a run into its folder, unless it is there."""
    path, text = folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def steps_taken(folder: Path, config: Mapping[str, Any], whole: bool = True) -> int:
    """Return the outer step that a run continues from; `whole` as for `newest_readable`.

    A file of more steps than were asked for is no checkpoint of the run.
    """
    most = max(c["outer_steps"] for c in (config, started_with(folder) or config))
    return checkpoint.newest_readable(folder / "checkpoints", most, whole)


def extended(folder: Path, config: dict[str, Any], outer_steps: int | None) -> dict[str, Any]:
    """Return the config with another number of outer steps; itself where there is none to set.

    What a config has computed from the number of outer steps, such as the length of a schedule,
    stays, and is named on the standard error.

    Raises:
        ConfigError: the number is below what the run has taken.
    """
    before = started_with(folder) or config
    if outer_steps is None or outer_steps == config["outer_steps"] == before["outer_steps"]:
        return config
    done = steps_taken(folder, config)
    if outer_steps < done:
        raise ConfigError(
            f"outer_steps={outer_steps} is below the {done} that {folder} has taken; "
            f"pass a larger number."
        )
    outer_steps = int(outer_steps)  # of numpy, too
    if totals := config.get(TOTALS):
        print(f"{', '.join(totals)} of {folder} came from outer_steps={before['outer_steps']} and "
              f"stay as they are: the run of {outer_steps} outer steps is this one gone on, not "
              f"the one that outer_steps={outer_steps} starts.", file=sys.stderr)  # fmt: skip
    longer = {**config, "outer_steps": outer_steps}
    if isinstance(config.get("engine"), dict):
        longer["engine"] = {**config["engine"], "outer_steps": outer_steps}
    return longer
