"""One composed config, run in its folder."""

from __future__ import annotations

import os
import re
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

from metaopt.cli.build import build
from metaopt.cli.composing import cause
from metaopt.cli.keys import refuse_unread
from metaopt.cli.mistakes import foreign_method
from metaopt.cli.schema import ArgumentError
from metaopt.cli.seeds import with_seeds
from metaopt.cli.trust import refuse_strange
from metaopt.engine.budget import UNITS
from metaopt.files.errors import ConfigError, listed
from metaopt.files.lock import refuse_held
from metaopt.files.reading import steps
from metaopt.runs import configs, provenance
from metaopt.runs.continuing import rest_of, write_config
from metaopt.runs.errors import report
from metaopt.runs.folder import result_of, started_with
from metaopt.runs.interrupts import Interrupted, Pruned
from metaopt.runs.objective import objectives, refuse_unknown
from metaopt.runs.progress import watcher
from metaopt.runs.run import PYTHON, Prune


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Args:
        status: "computed", "complete" (it was before), "pruned" or "failed".
        folder: the run's folder.
        objective: the metric that the config names; `None` where it names none, the metric is not
            finite, or the run did not come to its end.
    """

    status: str
    folder: Path
    objective: float | None = None


def job(
    config: DictConfig,
    printed: set[str] | None = None,
    shared: bool = False,
    prune: Prune | None = None,
) -> Outcome:
    """Run one composed config in the folder that hydra made for it; errors end up in messages.

    Args:
        config: the composed config.
        printed: messages of earlier cells of a sweep, which are not printed in full again.
        shared: see `refuse_unread`.
        prune: see `metaopt.runs.run.Run`.
    """
    state: Any = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    sweeping = state.mode == RunMode.MULTIRUN
    with _explained(folder, printed) as failed:
        with open_dict(config):
            config.pop("methods", None)  # of the whole table
        refuse_unread(config, list(state.overrides.task), shared)
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        resolved = with_seeds(config, resolved)
        _refuse_foreign(folder, resolved)
        try:
            return _run(folder, resolved, list(state.overrides.task), sweeping, prune=prune)
        except Pruned as stop:
            print(f"{folder}: {stop}", flush=True)
            return Outcome("pruned", folder)
        except ArgumentError as error:
            hint = foreign_method(state.runtime.choices)
            raise ConfigError(f"{error}{hint}") from error
    remove_empty(folder)
    return failed


@contextmanager
def _explained(folder: Path, printed: set[str] | None = None) -> Iterator[Outcome]:
    """Turn what stops a run into a message; yield the outcome of one that fails."""
    try:
        yield Outcome("failed", folder)
    except Interrupted as stop:
        command = provenance.resume_command(folder, trusting=True)
        print(f"Stopped: {stop}. Continue with\n  {command}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except Exception as error:
        report(cause(error), folder, printed)


def remove_empty(folder: Path) -> None:
    """Remove a folder that is empty, with those above it that hydra made: never the working one."""
    if folder.is_dir() and not any(folder.iterdir()):
        (folder.rmdir if folder.is_absolute() else partial(os.removedirs, folder))()


def resume(folder: Path, rest: Sequence[str]) -> Outcome:
    """Continue the run of a folder.

    Args:
        folder: the run's.
        rest: `outer_steps=N`, which extends it, and `trust=[package]`; see `metaopt.cli.trust`.

    Raises:
        ConfigError: the folder holds no run, its config.yaml was edited since the run was started,
            or there are other overrides.
    """
    trust = [word.partition("=")[2] for word in rest if word.startswith("trust=")]
    rest = [word for word in rest if not word.startswith("trust=")]
    wrong = [word for word in rest if not re.fullmatch(r"outer_steps=\d+", word)]
    if wrong:
        raise ConfigError(
            f"resume= continues a run as it was started, with outer_steps=<number> where it is to "
            f"take more outer steps and trust=[<package>] for code that it names; drop "
            f"{' '.join(wrong)}, or start a new run with it."
        )
    extending = int(rest[-1].partition("=")[2]) if rest else None
    with _explained(folder) as failed:
        config, done = rest_of(folder, extending)
        if config.get("started") == PYTHON:
            raise ConfigError(
                f"{folder} was started from Python and needs its problem; continue it there with\n"
                f'  metaopt.resume("{folder}", problem=...)'
            )
        if not done:
            refuse_strange(folder, config, re.findall(r"[^\s,\[\]]+", ",".join(trust)))
        return _run(folder, config, [], False, again=not done)
    return failed


def _run(
    folder: Path,
    config: dict[str, Any],
    overrides: Sequence[str],
    sweeping: bool,
    again: bool = False,
    prune: Prune | None = None,
) -> Outcome:
    """Run a config in its folder, unless it is complete and not to be run again."""
    result = None if again else result_of(folder)
    if result is not None:
        write_config(folder, config)
        print(f"{folder}: already complete; nothing computed.")
        return Outcome("complete", folder, _objective(config, result))
    refuse_held(folder)  # before the parts are made, which may take long
    watch = watcher if not sweeping or sys.stderr.isatty() else None
    run = build(folder, config, overrides, watch, prune=prune)
    started = time.monotonic()
    result = run()
    (folder / "error.log").unlink(missing_ok=True)
    _conclude(folder, result, time.monotonic() - started, sweeping, run.delivered)
    return Outcome("computed", folder, _objective(config, result))


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


def _conclude(
    folder: Path, result: Mapping[str, Any], seconds: float, sweeping: bool, delivered: str
) -> None:
    """Print the final metrics, what was delivered, the folder and the next command."""
    metrics = {k: v for k, v in result["metrics"].items() if v is not None}
    if sweeping:
        shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith("eval/"))
        print(f"{folder}: {shown}  ({seconds:.1f} s)", flush=True)
        return
    width = max([26, *map(len, metrics)]) + 2
    for name, value in metrics.items():
        print(f"{name:<{width}}{value:.6g}")
    if delivered:
        print(delivered)
    stopped = result["stopped"]
    if stopped:
        why = f"the limit on {stopped} is reached" if stopped in UNITS else stopped
        print(f"stopped early: {why}")
    print(f"{result['outer_steps']} outer steps in {seconds:.1f} s; everything is in {folder}")
    print(f"Next: metaopt-report {folder}")
