"""A launcher of hydra whose cells are followed: shown while they run, listed where they fail."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from metaopt.cli import folders
from metaopt.cli.cell_table import Display
from metaopt.cli.cells import HEARTBEATS, Cell, Multirun, heartbeat_path, is_stale
from metaopt.cli.composing import cause
from metaopt.cli.jobs import Outcome
from metaopt.cli.loading import CONFIG
from metaopt.files.errors import ConfigError
from metaopt.files.lock import is_held
from metaopt.runs.errors import explain
from metaopt.runs.fitting import rounded, shortened
from metaopt.runs.headline import stated_metrics


class LauncherError(ConfigError):
    """A launcher has ended before its cells did, as where one of its workers was killed."""


class FollowedLauncher:
    """Runs cells by a launcher of hydra, and follows them by their files.

    Args:
        launcher: hydra's, set up.
        loader: composes the config of a cell.
        config: of the sweep, with its node `hydra`; its folder becomes an absolute path.
        multirun: where its cells are collected.
        names: where those of the cells are put for the workers, by number.

    Attributes:
        display: shows them.
    """

    def __init__(
        self,
        launcher: Launcher,
        loader: Any,
        config: DictConfig,
        multirun: Multirun,
        names: dict[int, str] | None = None,
    ) -> None:
        self.launcher, self.loader, self.config = launcher, loader, config
        self.names = {} if names is None else names
        self._waited = False
        self.in_process = type(launcher).__name__ == "BasicLauncher"
        self.multirun, multirun.folder = multirun, Path(config.hydra.sweep.dir)
        self.display = Display(self.multirun)
        if not self.in_process:
            _fix_folder(config)
        _reach_cluster(launcher)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run cells; one that raises has the outcome "failed".

        Cells that another command computes are waited for, and run where it leaves them unfinished.

        Raises:
            ConfigError: two cells would write to one folder.
            LauncherError: the launcher has ended before its cells did.
        """
        multirun, batch = self.multirun, [list(words) for words in job_overrides]
        multirun.total = max(multirun.total or 0, len(multirun.cells) + len(batch))
        keys = differing(batch) if multirun.keys is None else multirun.keys
        cells = [self._cell(words, initial_job_idx + i, keys) for i, words in enumerate(batch)]
        _refuse_shared_folders([*multirun.cells, *cells])
        self.names |= {initial_job_idx + i: rounded(cell.name) for i, cell in enumerate(cells)}
        multirun.cells += cells
        try:
            jobs = self._run(cells, batch, initial_job_idx)
            while any(cell.status == "elsewhere" for cell in cells):
                free = self._await_another_command(cells)
                jobs[free] = self._run(cells[free], batch[free], initial_job_idx + free.start)
        finally:
            _forget(cells)
        return jobs

    def _run(
        self, cells: Sequence[Cell], batch: Sequence[Sequence[str]], first: int
    ) -> list[JobReturn]:
        _forget(cells)  # heartbeats of a command that was killed
        self.display.begin(cells)
        try:
            returned = list(self.launcher.launch(batch, initial_job_idx=first))
        except (Exception, SystemExit) as error:
            if self.in_process:  # a signal, or a mistake in a config
                raise
            self._await_others(cells)
            raise LauncherError(self._ended_early(error)) from error
        finally:
            self.display.update()
        for cell, job in zip(cells, returned, strict=True):
            self._settle(cell, job)
        return returned

    def _cell(self, words: list[str], number: int, keys: set[str]) -> Cell:
        """Compose the config of a cell, which also finds mistakes in it before one is run."""
        config = self.loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            sweep = Path(config.hydra.sweep.dir).absolute()
            folder = sweep / str(config.hydra.sweep.subdir)
            stated = stated_metrics(_naming_metrics(config))
        finally:
            HydraConfig.instance().cfg = before
        heartbeat = heartbeat_path(sweep, folder, self.multirun.command)
        return Cell(_name(words, keys), folder, heartbeat, command_of(self.config, words), stated)

    def _settle(self, cell: Cell, job: JobReturn) -> None:
        """Take what a launcher says of a cell, where the heartbeat has not said it."""
        if job.status != JobStatus.COMPLETED:
            text = explain(cause(job._return_value), cell.folder)
            job.return_value, job.status = (
                Outcome("failed", cell.folder, message=text),
                JobStatus.COMPLETED,
            )
        outcome: Outcome = job.return_value
        if outcome.status == "elsewhere":
            cell.leave(outcome.message)
            return
        self.display.end(cell, outcome.status, outcome.message, outcome.computed)
        if cell.status == "failed":  # also where its result is not to be seen from here
            outcome.status, outcome.message = cell.status, cell.message

    def _await_others(self, cells: Sequence[Cell]) -> None:
        """Wait for cells that go on without the launcher, as those of submitit and Ray do."""
        time.sleep(Display.INTERVAL_S)  # for the system to end what the launcher kills
        self.display.update()
        while any(cell.alive for cell in cells):
            time.sleep(Display.INTERVAL_S)

    def _await_another_command(self, cells: Sequence[Cell]) -> slice:
        """Wait until cells that another command computes have an end; return some in a row."""
        elsewhere = [i for i, cell in enumerate(cells) if cell.status == "elsewhere"]
        free = [i for i in elsewhere if not is_held(cells[i].folder)]
        if not free and not self._waited:
            self._waited = True
            print(f"Waiting for another command: {cells[elsewhere[0]].message}", file=sys.stderr)
        while not free:
            time.sleep(Display.INTERVAL_S)
            free = [i for i in elsewhere if not is_held(cells[i].folder)]
        end = next(i for i in itertools.count(free[0]) if i not in free)
        return slice(free[0], end)

    def _ended_early(self, error: BaseException) -> str:
        name = self.config.hydra.runtime.choices.get("hydra/launcher")
        lines = str(error).strip().splitlines() or [""]
        why = shortened(f"{type(error).__name__}: {lines[0]}", 160)
        return (
            f"hydra/launcher={name} ended before its cells did ({why}). What has finished is kept, "
            f"and the same command computes the rest, each cell from its last checkpoint."
        )


def _naming_metrics(config: DictConfig) -> dict[str, Any]:
    """Return what of a config names metrics; a mistake in it is left for the run to name."""

    def select(key: str) -> Any:
        return OmegaConf.select(config, key, throw_on_resolution_failure=False)

    names = {key: select(key) for key in ("objective", "keep_best", "early_stopping")}
    return {**names, "report": {"metrics": select("report.metrics")}}


def command_of(config: DictConfig, words: Sequence[str]) -> str:
    """Return the command that runs a cell by itself, in a folder of its own below `runs`.

    Args:
        config: of the sweep, with its node `hydra`.
        words: overrides of the cell.
    """
    command = ["metaopt"]
    for folder in folders.given():
        command += ["--config-dir", folder]
    if (name := config.hydra.job.config_name) != CONFIG:
        command += ["--config-name", name]
    expands = any(word.startswith("experiment=") for word in words)
    return shlex.join([*command, *words, *(["hydra.mode=RUN"] if expands else [])])


def differing(batch: Sequence[Sequence[str]]) -> set[str]:
    """Return the keys in which the overrides of cells differ."""
    each = [_by_key(words) for words in batch]
    keys = {key for values in each for key in values}
    return {key for key in keys if len({values.get(key) for values in each}) > 1}


def _by_key(words: Sequence[str]) -> Mapping[str, str]:
    return dict(word.partition("=")[::2] for word in words)


def _name(words: Sequence[str], keys: set[str]) -> str:
    """Return the overrides that tell a cell from others; of a single cell all of them."""
    apart = [f"{key}={value}" for key, value in _by_key(words).items() if key in keys]
    return " ".join(apart or words)


def failures(multirun: Multirun) -> str:
    """Return a list of the cells that failed: what went wrong, and the command of each."""
    failed = multirun.of("failed")
    if not failed:
        return ""
    lines = ["Failed, each with the command that runs it alone:"]
    for message in dict.fromkeys(cell.message for cell in failed):
        first = message.splitlines()[0] if message else "no message"
        lines.append(f"  {shortened(first, 110)}")
        lines += [f"    {cell.command}" for cell in failed if cell.message == message]
    return "\n".join(lines)


def _refuse_shared_folders(cells: Sequence[Cell]) -> None:
    """Raise a `ConfigError` where two different cells have one folder; before one is run."""
    commands: dict[Path, str] = {}
    for cell in cells:
        other = commands.setdefault(cell.folder, cell.command)
        if other != cell.command:
            raise ConfigError(
                f"Two cells would write to {cell.folder}:\n  {other}\n  {cell.command}\nKeys that "
                "leave results as they are, such as label or tracker, are not in a folder's name, "
                "nor are characters that differ from letters and digits. Give such a key one "
                "value, or run each with another name=NAME."
            )


def _fix_folder(config: DictConfig) -> None:
    """Make the folder of a sweep absolute in the configs of its cells.

    Workers of a Ray cluster start in another working folder than the command. What the path says
    of the cell, such as its name, stays.
    """
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if Path(config.hydra.sweep.dir).is_absolute():
        return
    folder = str(Path.cwd() / sweep["dir"]).replace("'", r"\'")
    with open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")


def _reach_cluster(launcher: Any) -> None:
    """Let the launcher of Ray connect to a cluster that is running.

    It asks for a size of the object store, which `ray.init` refuses together with an address.
    """
    init = getattr(launcher, "ray_cfg", {}).get("init")
    if init and init.get("address") not in (None, "local"):
        with open_dict(init):
            init.setdefault("object_store_memory", None)


def _forget(cells: Sequence[Cell]) -> None:
    """Remove the heartbeats of cells, and their folder unless another command has some in it."""
    for cell in cells:  # with what a kill has left of one
        name = cell.heartbeat.stem.partition("-")[0]
        paths: list[Path] = []
        with suppress(FileNotFoundError):  # the folder, which another command has removed
            paths += cell.heartbeat.parent.glob(f"{name}-*")
        for path in paths:
            if path.name.startswith(cell.heartbeat.name) or is_stale(path):
                path.unlink(missing_ok=True)
    for place in {cell.heartbeat.parent for cell in cells}:
        if place.name == HEARTBEATS:
            with suppress(OSError):  # not empty, or removed by a command that ends just now
                place.rmdir()
