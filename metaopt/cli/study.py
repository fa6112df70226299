"""`hydra/sweeper=tune`: a search of the keys that are given as ranges, by Optuna's ask and tell.

The study is a journal in the sweep's folder. A trial is one run in the folder of its overrides, and
remains running in the study until a process tells what became of it. Each process that takes part
holds a lock on what it runs. A trial that is running and that nobody holds is one whose process was
stopped or killed: the next process, or the next call of the same command, continues it from its
checkpoint. Several processes of one command so share one study, whatever happens to one of them.

What a sampler draws is a function of its seed, the number of the trial, the key and the trials
before it, so that processes do not repeat each other's draws, and a study that is continued is the
one that was never interrupted.
"""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt.cli.cells import Multirun
from metaopt.cli.jobs import Outcome
from metaopt.cli.launching import command_of, failures
from metaopt.cli.search_space import first_of, overrides_of, search_space, suggest
from metaopt.cli.trial import STUDY, TrialTask, storage
from metaopt.engine.random import fold
from metaopt.files.errors import ConfigError, FolderInUseError, listed
from metaopt.files.lock import locked, refuse_held, waiting_for
from metaopt.files.writing import write_json
from metaopt.report.collect import JOURNAL
from metaopt.report.study import SUMMARY
from metaopt.runs.configs import differences

DIRECTIONS = ("minimize", "maximize")
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class OptunaSweeper(Sweeper):
    """Searches for the overrides whose run has the best objective.

    Args:
        params: by key, the values or the range to search; overrides of the command line go over it.
        n_trials: how many trials are wanted that finish or are pruned, in all calls together, >= 1.
            One that fails is replaced at the next call.
        n_jobs: how many trials the launcher gets at once, >= 1.
        direction: "minimize" or "maximize".
        sampler, pruner: configs of Optuna's, with a `_target_`; `None` is Optuna's default sampler,
            and no pruner.

    Raises:
        ConfigError: an argument is not legal.
    """

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        n_trials: int = 20,
        n_jobs: int = 1,
        direction: str = "minimize",
        sampler: Mapping[str, Any] | None = None,
        pruner: Mapping[str, Any] | None = None,
    ) -> None:
        self.params, self.n_trials, self.n_jobs = dict(params or {}), n_trials, n_jobs
        self.direction, self.sampler, self.pruner = direction, sampler, pruner
        self.multirun = Multirun()
        for name in ("n_trials", "n_jobs"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"hydra.sweeper.{name} must be a whole number >= 1; got {value}.")
        if direction not in DIRECTIONS:
            raise ConfigError(
                f"hydra.sweeper.direction must be minimize or maximize, for the one metric that "
                f"objective names; got {direction}."
            )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher; see `hydra.plugins.sweeper.Sweeper`."""
        self.master, self.loader = config, hydra_context.config_loader
        self.folder = Path(config.hydra.sweep.dir)
        self.home = (self.folder / SUMMARY).resolve().parent
        self.task = TrialTask(task_function, self.folder.resolve() / JOURNAL, self.pruner)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=self.task
        )

    def sweep(self, arguments: list[str]) -> int:
        """Run the trials that the study lacks, say which one is the best; return the exit code.

        Args:
            arguments: the overrides of the command line.

        Raises:
            ConfigError: the overrides do not compose, name no objective, have nothing to search,
                or belong to another search than the study in the folder.
        """
        words = [*overrides_of(self.params), *arguments]
        parser = OverridesParser.create(config_loader=self.loader)
        self.fixed, self.space = search_space(parser.parse_overrides(words))
        asked = self._asked()
        instantiate(self.pruner), self._seeded(0)  # a mistake is said before anything is written
        started = time.monotonic()
        self.task.journal.parent.mkdir(parents=True, exist_ok=True)
        with waiting_for(self.home):
            self._open(asked)
            before = self.study.get_trials(deepcopy=False)
        self.goal = self.n_trials + sum(t.state == TrialState.FAIL for t in before)
        ended = sum(t.state.is_finished() for t in before)
        self.multirun.keys = set(self.space)
        self.multirun.total = self.goal - ended
        try:
            self._run()
        except (KeyboardInterrupt, SystemExit):
            print("The study is kept; the same command goes on with it.", file=sys.stderr)
            raise
        return self._conclude(ended, time.monotonic() - started)

    def _asked(self) -> dict[str, Any]:
        """Return what the search is: its space, its objective, and the config that is searched."""
        words = [*self.fixed, *overrides_of(first_of(self.space))]
        composed = self.loader.load_sweep_config(self.master, words)
        config: Any = OmegaConf.to_container(composed, resolve=False)
        if config.get("objective") is None:
            raise ConfigError(
                "hydra/sweeper=tune needs objective=<metric>, such as objective=eval/test_loss; "
                "hydra.sweeper.direction says which way is better."
            )
        if config.get("methods"):
            raise ConfigError(
                "methods lists what a table compares, and hydra/sweeper=tune searches one "
                "product; give method=<one>, or several as method=<one>,<another>."
            )
        searched = {key.lstrip("+").partition("@")[0] for key in self.space}
        for key in ("hydra", *searched):
            _drop(config, key.split("."))
        space = {key: json.loads(distribution_to_json(d)) for key, d in self.space.items()}
        search = {"objective": config["objective"], "direction": self.direction, "space": space}
        return {"search": search, **config}

    def _open(self, asked: Mapping[str, Any]) -> None:
        """Open the study, or begin it.

        Raises:
            ConfigError: it is that of another search.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=STUDY,
            storage=storage(self.task.journal),
            direction=self.direction,
            load_if_exists=True,
        )
        before = self.study.user_attrs.get("asked")
        if before is None:
            self.study.set_user_attr("asked", json.loads(json.dumps(asked, default=str)))
        elif changed := differences(before, asked):
            raise ConfigError(
                f"{self.folder} holds the study of another search (then -> now):\n"
                f"{listed(changed)}\n"
                f"Delete the folder to search again, or set name=<another name>."
            )

    def _run(self) -> None:
        """Run trials until there are as many as wanted, those of other processes included."""
        waiting = False
        while True:
            with ExitStack() as held:
                if batch := self._claimed(held):
                    self._launch(batch)
                    continue
            with waiting_for(self.home):
                running = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
                if not running:
                    shutil.rmtree(self.home / "locks", ignore_errors=True)
                    return
            if not waiting:
                print(f"Waiting for {len(running)} trials of other processes.", flush=True)
                waiting = True
            time.sleep(1.0)

    def _claimed(self, held: ExitStack) -> list[Trial]:
        """Return trials to run, which no other process will: those left over, then new ones.

        Nobody else asks meanwhile, so that there are never more trials than wanted.
        """
        batch: list[Trial] = []
        with waiting_for(self.home):
            trials = self.study.get_trials(deepcopy=False)
            for left in (t for t in trials if t.state == TrialState.RUNNING):
                if len(batch) < self.n_jobs and self._hold(left, held):
                    again = partial(Trial, self.study, left._trial_id)
                    batch.append(self._drawn(left.number, again))
            goal = 0 if self.study.user_attrs.get("exhausted") else self.goal
            for number in range(len(trials), goal):
                if len(batch) == self.n_jobs:
                    break
                trial = self._drawn(number, self.study.ask)
                if not self._hold(trial, held):  # the same overrides are being run: it comes after
                    break
                batch.append(trial)
        return batch

    def _drawn(self, number: int, begin: Callable[[], Trial]) -> Trial:
        """Return a trial with all its parameters, of which a killed process may have drawn some.

        Each is drawn by a sampler of its own, so that it does not depend on which are drawn here.
        """
        self.study.sampler = self._seeded(
            number
        )  # draws those that belong together, as CMA-ES does
        trial = begin()
        for key, distribution in self.space.items():
            self.study.sampler = self._seeded(number, key)
            suggest(trial, key, distribution)
        return trial

    def _hold(self, trial: FrozenTrial | Trial, held: ExitStack) -> bool:
        """Lock the overrides of a trial; return whether nobody else had."""
        text = json.dumps(trial.params, sort_keys=True)
        place = self.home / "locks" / sha256(text.encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        try:
            if folder := trial.user_attrs.get("folder"):  # whose process may outlive the sweep's
                refuse_held(Path(folder))
            held.enter_context(locked(place))
        except FolderInUseError:
            return False
        return True

    def _seeded(self, *ids: int | str) -> Any:
        """Return a sampler of its own, by the number of the trial and what it draws of it."""
        if self.sampler is None:
            return optuna.samplers.TPESampler()
        config = copy.deepcopy(dict(self.sampler))
        _reseed(config, *ids)
        return instantiate(config)

    def _launch(self, batch: Sequence[Trial]) -> None:
        self.task.ids = [trial._trial_id for trial in batch]
        words = [[*self.fixed, *overrides_of(trial.params)] for trial in batch]
        returned = self.launcher.launch(words, initial_job_idx=0)
        for trial, job in zip(batch, returned, strict=True):
            self._tell(trial, job.return_value)

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        value = outcome.objective
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        if outcome.status == "pruned":
            state = TrialState.PRUNED
        try:
            self.study.tell(trial, value, state)
        except RuntimeError as error:  # of samplers that know the end of a space; the state is kept
            if "Study.stop" not in str(error):
                raise
            self.study.set_user_attr("exhausted", True)

    def _conclude(self, before: int, seconds: float) -> int:
        """Say what there is, and the command of the best trial; return the exit code.

        Args:
            before: the trials that had ended before; one that was stopped is computed now.
            seconds: how long that took.
        """
        summary = self._summary()
        # For the report, which can be made without Optuna.
        write_json(self.folder / SUMMARY, summary)
        trials, best = summary["trials"], summary["best"]
        new = f"{trials - before} of them in {seconds:.0f} s"
        print(
            f"{trials} trials, {new if trials > before else 'nothing to compute'}: "
            f"{summary['finished']} finished, {summary['pruned']} pruned, "
            f"{summary['failed']} failed."
        )
        if self.multirun.of("failed"):
            print(failures(self.multirun))
        if best is None:
            print("No trial has finished with a finite objective, so that none is the best.")
            return 1
        print(
            f"Best: trial {best['trial']}, {summary['objective']} {best['value']:.6g}, in "
            f"{_shown(self.folder / best['run'])}\n  {best['command']}"
        )
        print(f"Next: metaopt-report {shlex.quote(str(self.folder))}")
        return 0

    def _summary(self) -> dict[str, Any]:
        """Return what `metaopt.report.study` reads."""
        trials = self.study.get_trials(deepcopy=False)
        of = {state: [t for t in trials if t.state == state] for state in TrialState}
        best = self.study.best_trial if of[TrialState.COMPLETE] else None
        return {
            "objective": self.study.user_attrs["asked"]["search"]["objective"],
            "direction": self.direction,
            "trials": len(trials),
            "finished": len(of[TrialState.COMPLETE]),
            "pruned": len(of[TrialState.PRUNED]),
            "failed": len(of[TrialState.FAIL]),
            "pruned_runs": [Path(t.user_attrs["folder"]).name for t in of[TrialState.PRUNED]],
            "best": best
            and {
                "trial": best.number,
                "value": best.value,
                "run": Path(best.user_attrs["folder"]).name,
                "command": command_of(self.master, [*self.fixed, *overrides_of(best.params)]),
            },
        }


def _reseed(config: Any, *ids: int | str) -> None:
    """Fold the number of a trial into each seed of a sampler's config.

    Not into that of `QMCSampler`, which names the sequence that all trials take their points from.
    """
    if isinstance(config, list):
        for node in config:
            _reseed(node, *ids)
    elif isinstance(config, dict):
        for node in config.values():
            _reseed(node, *ids)
        if type(config.get("seed")) is int and not config.get("_target_", "").endswith(
            "QMCSampler"
        ):
            config["seed"] = fold(config["seed"], *ids) % 2**32


def _drop(config: Any, path: Sequence[str]) -> None:
    *nodes, last = path
    for name in nodes:
        config = config.get(name) if isinstance(config, dict) else None
    if isinstance(config, dict):
        config.pop(last, None)


def _shown(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
