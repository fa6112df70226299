"""Weights & Biases as a tracker: one W&B run for one run's folder, whatever interrupts it.

wandb's own file has nothing on the disk until some 32 KiB have come together, so that a kill loses
it. A run that continues therefore sends its records again from metrics.jsonl: kept offline, the
file of the last process is the whole run and takes the place of earlier ones; online, what the
server has is left out. A record's step in W&B is the outer step, which says what the server has.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.files.errors import ConfigError, DamagedFileError
from metaopt.files.numbers import or_nan
from metaopt.files.reading import read_json, read_records
from metaopt.files.writing import write_json
from metaopt.runs.configs import config_hash
from metaopt.runs.folder import read_provenance
from metaopt.runs.interrupts import Interrupted, Pruned
from metaopt.runs.stopping import stop_of
from metaopt.runs.tracking.description import filing, sendable
from metaopt.runs.tracking.products import artifacts, tables
from metaopt.runs.tracking.protocol import Tracker
from metaopt.runs.tracking.services import missing
from metaopt.runs.tracking.wandb_file import is_finished

MODES = ("online", "offline", "disabled")

STOPS = (Interrupted, KeyboardInterrupt, SystemExit)
"""What stops a run that may go on later."""

WRITING_TIMEOUT_S = 10.0
"""Seconds that wandb has to write a finished run to the disk."""

SETTINGS = {
    "console": "off", "silent": True, "disable_git": True, "disable_code": True,
    # The command line and the machine's account; the config has the rest of it.
    "x_disable_meta": True,
    "finish_timeout": 600.0,
}  # fmt: skip
"""Settings of wandb, those that the installed one knows: of the user's code nothing is sent."""


class Wandb(Tracker):
    """One Weights & Biases run per run's folder, resumed under the same id.

    Metrics are drawn over `outer_step`, those of `inner/` over `inner_step`, the inner steps spent
    so far. Every outer step is recorded once, also after a kill. The config has the resolved
    config, and under `provenance` versions, commit and hardware; the summary gets the final metrics
    and the budget. A run that a signal stops is *preempted* until it is resumed, a pruned one is
    finished, with `stopped` in its summary.

    Args:
        folder: the run's folder; wandb's files, and the run's id, are in its folder `wandb`.
        config: the resolved config, sent without secrets.
        resume_step: outer step that the run continues from.
        project: the project's name; `None` is $WANDB_PROJECT, else metaopt.
        mode: "online", "offline" (written below `folder`, sent later by `wandb sync`) or
            "disabled"; `None` is what $WANDB_MODE says, else "online". Where a server cannot be
            reached, the run is kept offline.
        entity: user or team; `None` is the account's default.
        group: `None` is the config's `name`, which all cells of a table share.
        job_type: `None` is the config's `label`, the method's name in tables, else the estimator.
        name: `None` is the name of the folder.
        tags: in addition to the problem, the estimator and the outer optimizer.
        artifacts: whether to send the outer variable, the tables and the other files that the
            problem has delivered.
        models: whether to send trained models, too.

    Raises:
        ValueError: an unknown mode.
        ModuleNotFoundError: wandb is not installed.
        ConfigError: wandb could not start the run, not even offline.
    """

    package = "wandb"

    @classmethod
    def check(cls, mode: str | None = None, **_: Any) -> None:
        """Raise an error if a run could not be sent: an unknown mode, or no account.

        On a terminal wandb asks for the key.
        """
        if _mode(mode) == "online":
            import wandb

            try:
                wandb.login(verify=False)
            except wandb.Error as error:
                raise _not_started(error) from error

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        resume_step: int | None = None,
        *,
        project: str | None = None,
        mode: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        artifacts: bool = True,
        models: bool = False,
    ) -> None:
        mode = _mode(mode)
        try:
            import wandb  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing("wandb", error) from error
        self._folder, self._artifacts, self._models = folder.resolve(), artifacts, models
        filed = filing(config)
        described = {
            "group": group or filed.group,
            "job_type": job_type or filed.job_type,
            "name": name or self._folder.name,
            "tags": list(dict.fromkeys([*filed.tags, *tags])),
            "config": {**config, "provenance": _provenance(folder)},
        }
        arguments: dict[str, Any] = {**sendable(described), "dir": str(self._folder)}
        if not _of_sweep():  # else an agent has decided on these
            project = project or os.environ.get("WANDB_PROJECT") or "metaopt"
            arguments |= {"project": project, "entity": entity}
        if mode != "disabled":
            arguments |= _identity(folder, config, resume_step)
        self.mode, self.run = _started(mode, arguments)
        # The server has what an earlier process sent before it was killed, and keeps it.
        self._next = getattr(self.run, "starting_step", 0) if self.mode == "online" else 0
        self._axes: set[str] = set()
        if mode != "disabled":
            self._take_over(resume_step)

    def _take_over(self, resume_step: int | None) -> None:
        """Send the records of earlier processes again; remove what they have kept offline."""
        path, records = self._folder / "metrics.jsonl", []
        if resume_step is not None and path.exists():
            records = read_records(path)
        for record in records:
            values = {k: v for k, v in record.items() if k not in ("outer_step", "replicates")}
            self.log(record["outer_step"], {k: or_nan(v) for k, v in values.items()})
        if resume_step and not records:  # metrics.jsonl was deleted: these may be all there is
            return
        for part in (self._folder / "wandb").glob("offline-run-*"):
            if part != Path(self.run.dir).resolve().parent:
                shutil.rmtree(part, ignore_errors=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of an outer step, unless an earlier process of the run has."""
        if step < self._next:
            return
        row = {"outer_step": step, **metrics}
        if (inner := metrics.get("budget/inner_steps")) is not None:
            row["inner_step"] = inner
        for name in row.keys() - self._axes:
            self._draw_over(name, "inner_step" if inner is not None else "outer_step")
        self.run.log(row, step=step, commit=True)
        self._next = step + 1

    def _draw_over(self, name: str, inner: str) -> None:
        """Say what a metric is drawn over.

        By name, since of two patterns that fit, wandb promises neither.
        """
        self._axes.add(name)
        if name in ("outer_step", "inner_step"):
            self.run.define_metric(name, hidden=True)
        else:
            axis = inner if name.startswith("inner/") else "outer_step"
            self.run.define_metric(name, step_metric=axis)

    def conclude(self, result: Mapping[str, Any]) -> None:
        """Send the final metrics and what the run has made."""
        spent = {f"budget/{unit}": amount for unit, amount in result["budget"].items()}
        final = {k: or_nan(v) for k, v in {**result["metrics"], **spent}.items()}
        if best := result.get("best"):
            final |= {
                f"best/{best['metric']}": best["value"],
                "best/outer_step": best["outer_step"],
            }
        stopped = str(stop_of(result) or "no")
        self.run.summary.update({**final, "outer_step": result["outer_steps"], "stopped": stopped})
        if self.mode == "disabled" or not self._artifacts:
            return
        for name, table in tables(result, self._folder):
            self.run.summary[name] = table
        for artifact in artifacts(self.run.id, self._folder, self._models):
            self.run.log_artifact(artifact)

    def close(self) -> None:
        """Finish the run as succeeded; say how to send it where it was kept offline."""
        self._finish(0)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        stopped = kind is not None and issubclass(kind, STOPS)
        # A sweep starts a preempted run again, and stops one that is not worth its time by SIGTERM.
        if kind is Pruned or (stopped and _of_sweep()):
            self.run.summary["stopped"] = str(rest[0])
            kind = None
        elif stopped:
            self.run.mark_preempting()  # with code 1 then preempted, not failed
        self._finish(0 if kind is None else 1)

    def _finish(self, code: int) -> None:
        self.run.finish(exit_code=code)
        place, mode, self.mode = self._folder / "wandb", self.mode, "disabled"
        if mode == "online":
            print(f"In Weights & Biases: {self.run.url}")
        if mode != "offline":
            return
        if not _written(Path(self.run.dir).parent):
            raise OSError(f"wandb has not written all of it to {place}; is the disk full?")
        print(f"Kept offline. Send it with: wandb sync {shlex.quote(str(place))}/offline-run-*")


def _started(mode: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the mode in which wandb has started a run, and the run."""
    import wandb

    known: dict[str, Any]
    known = {k: v for k, v in SETTINGS.items() if k in wandb.Settings.model_fields}
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            # Offline, a file is the whole run and replaces what a server has of it.
            resume = {"resume": "allow"} if attempt == "online" else {}
            # A second wandb.init in one process returns the first run unless told otherwise.
            run = wandb.init(
                mode=attempt,  # type: ignore[arg-type]
                reinit="create_new",
                settings=wandb.Settings(**known),
                **resume,  # type: ignore[arg-type]
                **arguments,
            )
            return attempt, run
        except wandb.Error as error:
            if attempt == "offline" or mode == "disabled":
                raise _not_started(error) from error
            print(f"wandb could not start the run online ({str(error).rstrip('. ')}); it is kept "
                  f"offline.", file=sys.stderr)  # fmt: skip
            wandb.teardown()  # else wandb's service refuses the id, which it takes to be in use
    raise AssertionError(mode)


def _written(folder: Path) -> bool:
    """Return whether all of a finished run is on the disk; wandb writes it in its own time."""
    until = time.monotonic() + WRITING_TIMEOUT_S
    while not any(is_finished(path) for path in folder.glob("*.wandb")):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _identity(
    folder: Path, config: Mapping[str, Any], resume_step: int | None
) -> dict[str, str | None]:
    """Return the id of a folder's run, and of a run of a sweep its project.

    Drawn at the run's start and kept in the folder, which may be moved; a folder that is deleted
    and computed again is another run.
    """
    path, agent = folder / "wandb" / "metaopt.json", _of_sweep()
    try:
        known = read_json(path, "") if path.exists() else {}
    except DamagedFileError:
        known = {}
    hashed = config_hash(config)
    if not known or (resume_step is None and known.get("config_hash") != hashed):
        drawn = os.environ.get("WANDB_RUN_ID") if agent else None
        known = {"id": drawn or secrets.token_hex(8), "config_hash": hashed}
        if agent:
            known |= {k: os.environ.get(f"WANDB_{k.upper()}") for k in ("project", "entity")}
        path.parent.mkdir(exist_ok=True)
        write_json(path, known)
    return {} if agent else {k: known[k] for k in ("id", "project", "entity") if known.get(k)}


def _of_sweep() -> bool:
    """Return whether an agent of a W&B sweep has started this process."""
    return "WANDB_SWEEP_ID" in os.environ


def _provenance(folder: Path) -> dict[str, Any]:
    record = read_provenance(folder)
    return {k: record[k] for k in ("versions", "commit", "hardware") if k in record}


def _mode(mode: str | None) -> str:
    """Return the mode of a run, which the environment says where it is `None`."""
    name = "WANDB_MODE" if mode is None else "tracker.mode"
    mode = os.environ.get("WANDB_MODE") or "online" if mode is None else mode
    if mode not in MODES:
        raise ValueError(f"{name} must be one of {', '.join(MODES)}; got {mode!r}.")
    return mode


def _not_started(error: Exception) -> ConfigError:
    return ConfigError(
        f"wandb could not start the run: {str(error).rstrip('. ')}. tracker.mode=offline and "
        f"tracker=none need no account."
    )
