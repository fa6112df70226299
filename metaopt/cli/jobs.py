"""One composed config, run in its folder."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from metaopt.cli import processes, torchrun
from metaopt.cli.build import build
from metaopt.cli.composing import cause
from metaopt.cli.keys import refuse_unread
from metaopt.cli.mistakes import foreign_method
from metaopt.cli.ranks import check_ranks, with_ranks
from metaopt.cli.resolving import with_totals
from metaopt.cli.schema import ArgumentError
from metaopt.cli.seeds import with_seeds
from metaopt.cli.trust import refuse_strange
from metaopt.files.errors import ConfigError, FolderInUseError, listed
from metaopt.files.lock import refuse_held
from metaopt.files.reading import steps
from metaopt.runs import configs, provenance
from metaopt.runs.continuing import PATIENCE, rest_of, write_config
from metaopt.runs.errors import report
from metaopt.runs.folder import result_of, started_with
from metaopt.runs.interrupts import Interrupted, Pruned
from metaopt.runs.objective import objectives, refuse_unknown
from metaopt.runs.progress import watcher
from metaopt.runs.run import PYTHON, Prune, Watch
from metaopt.runs.status import Status
from metaopt.runs.stopping import stop_of


@dataclass
class Outcome:
    """What became of one run.

    Args:
        status: one of `metaopt.runs.status.OVER`, or "elsewhere".
        folder: the run's folder.
        objective: the metric that the config names; `None` where it names none, the metric is not
            finite, or the run did not come to its end.
        message: what went wrong, of one that failed; who computes one that is elsewhere.
        computed: whether this call did something, or the run was finished before.
    """

    status: Status
    folder: Path
    objective: float | None = None
    message: str = ""
    computed: bool = True


def job(
    config: DictConfig,
    shared: bool = False,
    watch: Watch | None = watcher,
    prune: Prune | None = None,
) -> Outcome:
    """Run one composed config in the folder that hydra made for it; errors end up in messages.

    A cell of a multirun prints nothing of its own: who started it does.

    Args:
        config: the composed config.
        shared: see `refuse_unread`.
        watch, prune: see `metaopt.runs.run.Run`.
    """
    state: Any = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    sweeping = state.mode == RunMode.MULTIRUN
    with _explained(folder, silent=sweeping) as failed:
        with open_dict(config):
            config.pop("methods", None)  # of the whole table
        refuse_unread(config, list(state.overrides.task), shared)
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        resolved = with_totals(config, with_seeds(config, resolved))
        resolved = with_ranks(resolved, started_with(folder))
        _refuse_foreign(folder, resolved)
        try:
            return _run(folder, resolved, list(state.overrides.task), sweeping, watch, prune=prune)
        except Pruned:
            return Outcome("pruned", folder)
        except FolderInUseError as error:
            if not sweeping or torchrun.processes() > 1:
                raise
            return Outcome("elsewhere", folder, message=str(error), computed=False)
        except ArgumentError as error:
            hint = foreign_method(state.runtime.choices)
            raise ConfigError(f"{error}{hint}") from error
    remove_empty(folder)
    return failed


@contextmanager
def _explained(folder: Path, silent: bool = False) -> Iterator[Outcome]:
    """Turn what stops a run into a message; yield the outcome of one that fails."""
    outcome = Outcome("failed", folder)
    try:
        yield outcome
    except Interrupted as stop:
        command = provenance.resume_command(folder, trusting=True)
        print(f"Stopped: {stop}. Continue with\n  {command}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except (Exception, SystemExit) as error:  # code of a user may call sys.exit
        outcome.message = report(cause(error), folder, silent)


def remove_empty(folder: Path) -> None:
    """Remove a folder that is empty, with those above it that hydra made: never the working one."""
    if folder.is_dir() and not any(folder.iterdir()):
        (folder.rmdir if folder.is_absolute() else partial(os.removedirs, folder))()


MORE = ("outer_steps", PATIENCE)
"""Keys that a run may be continued with."""


def resume(folder: Path, rest: Sequence[str]) -> Outcome:
    """Continue the run of a folder.

    Args:
        folder: the run's.
        rest: `outer_steps=N` and `early_stopping.patience=N`, which extend it, and
            `trust=[package]`; see `metaopt.cli.trust`.

    Raises:
        ConfigError: the folder holds no run, its config.yaml was edited since the run was started,
            or there are other overrides.
    """
    trust = [word.partition("=")[2] for word in rest if word.startswith("trust=")]
    rest = [word for word in rest if not word.startswith("trust=")]
    more = {key: word for word in rest for key in MORE if re.fullmatch(rf"{key}=\d+", word)}
    if wrong := [word for word in rest if word not in more.values()]:
        raise ConfigError(
            f"resume= continues a run as it was started, with outer_steps=<number> where it is to "
            f"take more outer steps, {PATIENCE}=<number> where early stopping has ended it, and "
            f"trust=[<package>] for code that it names; drop {' '.join(wrong)}, or start a new run "
            f"with it."
        )
    numbers = [int(more[key].partition("=")[2]) if key in more else None for key in MORE]
    with _explained(folder) as failed:
        config, done = rest_of(folder, *numbers)
        if config.get("started") == PYTHON:
            raise ConfigError(
                f"{folder} was started from Python and needs its problem; continue it there with\n"
                f'  metaopt.resume("{folder}", problem=...)'
            )
        if not done:
            refuse_strange(folder, config, re.findall(r"[^\s,\[\]]+", ",".join(trust)))
        return _run(folder, config, [], False, watcher, again=not done)
    return failed


def _run(
    folder: Path,
    config: dict[str, Any],
    overrides: Sequence[str],
    sweeping: bool,
    watch: Watch | None,
    again: bool = False,
    prune: Prune | None = None,
) -> Outcome:
    """Run a config in its folder, unless it is finished and not to be run again."""
    check_ranks(config)
    result = None if again else result_of(folder)
    if result is not None:
        write_config(folder, config)
        if not sweeping or _by(result):
            print(f"{folder}: already finished{_by(result)}; nothing computed.")
        return Outcome("finished", folder, _objective(config, result), computed=False)
    refuse_held(folder)  # before the parts are made, which may take long
    processes.share(folder, config)
    with processes.together(folder, config):
        run = build(folder, config, overrides, watch, prune=prune)
        started = time.monotonic()
        result = run()
    if not sweeping:
        _conclude(folder, result, time.monotonic() - started, run.delivered)
    return Outcome("finished", folder, _objective(config, result))


def _by(result: Mapping[str, Any]) -> str:
    """Return what to add of a result that another number of processes has computed."""
    number = result.get("processes", 1)
    return "" if number == torchrun.processes() else f", computed by {number} processes"


def _refuse_foreign(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` if the folder holds the work of another config; name what differs."""
    before = started_with(folder)
    if before is None or not (steps(folder / "checkpoints") or result_of(folder)):
        return
    if configs.config_hash(before) != configs.config_hash(config):
        raise ConfigError(
            f"{folder} holds a run of another config:\n"
            f"{listed(configs.differences(before, config))}\n"
            f"Delete the folder to compute it again, or set name=<another name>."
        )


def _objective(config: Mapping[str, Any], result: Mapping[str, Any]) -> float | None:
    name = config["objective"]
    if name is None:
        return None
    values = objectives(result["metrics"], result["budget"])
    refuse_unknown(name, values)
    return None if values[name] is None else float(values[name])


def _conclude(folder: Path, result: Mapping[str, Any], seconds: float, delivered: str) -> None:
    """Print the final metrics, what was delivered, the folder and the next command."""
    metrics = {k: v for k, v in result["metrics"].items() if v is not None}
    width = max([26, *map(len, metrics)]) + 2
    for name, value in metrics.items():
        print(f"{name:<{width}}{value:.6g}")
    if delivered:
        print(delivered)
    if stop := stop_of(result):
        print(f"stopped early: {stop}")
    if (best := result.get("best")) and best["value"] is not None:
        print(f"best {best['metric']} {best['value']:.6g}, at outer step {best['outer_step']}: "
              f'metaopt.load("{folder}", best=True)')  # fmt: skip
    print(f"{result['outer_steps']} outer steps in {seconds:.1f} s; everything is in {folder}")
    print(f"Next: metaopt-report {shlex.quote(str(folder))}")
