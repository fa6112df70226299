"""A trial where it runs, which may be another process than that of the sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial

from metaopt.cli.jobs import Outcome
from metaopt.files.lock import waiting_for

STUDY = "metaopt"
"""Name of the one study of a journal."""


def storage(journal: Path) -> JournalStorage:
    """Return the storage that is a file, to which each change of a study appends a line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(journal), Lock(journal.parent)))


class Lock:
    """Optuna's lock of a journal, in the interface of `JournalFileOpenLock`.

    Optuna's own locks are files: one that a killed process has left holds up all others for half a
    minute. This one ends with its process.

    Args:
        folder: of the journal, with nothing else in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._held = folder, ExitStack()

    def acquire(self) -> bool:
        """Wait until nobody else writes to the journal."""
        self._held.enter_context(waiting_for(self.folder))
        return True

    def release(self) -> None:
        """Let others write."""
        self._held.close()


@dataclass
class TrialTask:
    """The task function of a sweep, which reports to the study what a run evaluates.

    Args:
        task: runs a config; its argument `prune` is that of `metaopt.runs.run.Run`.
        journal: the file of the study.
        pruner: config of Optuna's pruner, or `None`.

    Attributes:
        ids: Optuna's id of the trial of each job, by the number that the launcher gives it.
    """

    task: Callable[..., Any]
    journal: Path
    pruner: Mapping[str, Any] | None
    ids: list[int] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> Any:
        """Run a config as the trial of its job."""
        pruner = optuna.pruners.NopPruner() if self.pruner is None else instantiate(self.pruner)
        study = optuna.load_study(study_name=STUDY, storage=storage(self.journal), pruner=pruner)
        hydra = HydraConfig.get()
        trial = Trial(study, self.ids[hydra.job.num])
        folder = Path(hydra.runtime.output_dir)
        trial.set_user_attr("folder", str(folder))
        # A process may have been killed between the last report and what follows from it.
        if not (folder / "result.json").exists() and reported(trial) and trial.should_prune():
            return Outcome("pruned", folder)
        return self.task(config, prune=Prune(trial))


def reported(trial: Trial) -> Mapping[int, float]:
    """Return what a trial has reported, by outer step."""
    values: Mapping[int, float]
    values = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    return values


class Prune:
    """Reports the objective to a study as a run goes on.

    Args:
        trial: of the study, with its pruner.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def __call__(self, step: int, value: float) -> bool:
        """Report the value at an outer step; return whether the trial is to end there.

        A run that continues from a checkpoint comes through steps that it has reported before. A
        value that is not finite compares with none.
        """
        if not math.isfinite(value):
            return False
        if step not in reported(self.trial):
            self.trial.report(value, step)
        return bool(self.trial.should_prune())
