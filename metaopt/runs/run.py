"""One run: logging, evaluation, checkpoints, and a result at the true end.

The folder holds `config.yaml`, `README.md`, `provenance.json` (with the config that the run was
started with), `metrics.jsonl`, `checkpoints/`, `snapshots/` and, once the run is over, `figures/`,
the learned `outer` and `inner` (see `metaopt.runs.export`), `final.pt` (both as they are),
`timing.json` and `result.json`. All but the times are functions of the config: a continued run
writes the same `result.json`, to the byte. Without a folder a run writes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from metaopt.engine import Engine
from metaopt.engine.ranges import check_ranges
from metaopt.engine.seeds import seeds_in_words
from metaopt.files import sums
from metaopt.files.lock import locked
from metaopt.files.numbers import or_null
from metaopt.files.tensors import write_tensors
from metaopt.files.writing import as_text, refuse_links, write_json
from metaopt.runs import checkpoint, configs, provenance, reporting
from metaopt.runs.contents import (
    discard_later,
    empty_if_refused,
    refuse_misplaced,
    write_readme,
    write_sums,
)
from metaopt.runs.continuing import log_until, refuse_foreign, write_config
from metaopt.runs.export import export
from metaopt.runs.folder import read_provenance
from metaopt.runs.interrupts import Interrupted, Pruned, listening
from metaopt.runs.objective import objectives, refuse_early, refuse_unknown
from metaopt.runs.progress import GrowthWarning, warn_of_equal_replicates, watcher
from metaopt.runs.tracking import (
    History,
    Jsonl,
    Tracker,
    means,
    nullable,
    of_replicates,
    refuse_unusable,
    values_of,
)

PYTHON = "from Python"
"""What the key `started` of a config says of a run that no command line describes."""

SETTINGS = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "figures")
"""Arguments of a `Run` that are keys of a config."""

Service = Callable[..., Tracker]
"""Makes a further tracker: called with `(folder, config, resume_step)`."""

Watch = Callable[[str, int, int], Tracker]

Prune = Callable[[int, float], bool]


class Run:
    """Drives an engine to its end, from the last checkpoint of its folder where there is one.

    Args:
        engine: made and not yet iterated.
        folder: the run's folder, which must exist; `None` writes nothing.
        config: the resolved config, hashed into the result and handed to the trackers.
        service: makes the tracker used in addition to file and console, or `None`.
        overrides: what the command line changed, for the result.
        config_dirs, trust: the user's config folders, and the packages that the command that
            continues the run must name.
        log_every, eval_every, checkpoint_every: outer steps between two records, two evaluations
            on held-out data, two checkpoints; each >= 1.
        keep_checkpoints: how many of the newest checkpoints are kept, >= 1.
        figures: whether to draw learning curves and the problem's own figures at the end, and to
            write what it delivers.
        watch: makes what a person sees, from (label, outer steps in all, outer steps done);
            `None` shows nothing.
        prune: called at each evaluation but the last with the outer step and the objective that
            the config names; what returns True ends the run there, with a checkpoint.

    Attributes:
        delivered: what the problem says of its product, once the run is over.
        history: the records of this process, where there is no folder.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path | None,
        config: Mapping[str, Any],
        service: Service | None = None,
        overrides: Sequence[str] = (),
        *,
        config_dirs: Sequence[str] = (),
        trust: Sequence[str] = (),
        log_every: int = 1,
        eval_every: int = 10,
        checkpoint_every: int = 50,
        keep_checkpoints: int = 2,
        figures: bool = True,
        watch: Watch | None = watcher,
        prune: Prune | None = None,
    ) -> None:
        self.engine, self.config = engine, config
        self.folder = engine.loop.folder = folder
        self.service, self.overrides = service, list(overrides)
        self.config_dirs, self.trust = list(config_dirs), list(trust)
        self.log_every, self.eval_every = log_every, eval_every
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.figures, self.watch, self.prune = figures, watch, prune
        refuse_unusable(service)
        check_ranges(self, *(f"{name} >= 1" for name in SETTINGS[:-1]), "figures")
        self._last: Mapping[str, float | Tensor | list[float]] = {}
        self._seconds, self._log = 0.0, b""
        self._saved: int | None = None
        self._unchecked: str | None = config.get("objective")
        refuse_early(self._unchecked, engine.outer_steps, engine.problem.metric_names)
        self.delivered, self.history = "", History()

    def __call__(self) -> dict[str, Any]:
        """Run to the end and return what `result.json` holds.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after a checkpoint was written.
            Pruned: likewise, where `prune` says so.
            CheckpointError: there are checkpoints and none can be read.
            FolderError: another process writes to the folder, its last checkpoint is of a run of
                another config, it holds a symbolic link or a damaged file.
            NonFiniteError: from the engine.
            OSError: the folder cannot be written.
        """
        with ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(empty_if_refused(self.folder, self.engine))
                stack.enter_context(locked(self.folder))
            state = self._checkpoint()
            origin = self._origin(resumed=state is not None)
            stack.enter_context(self._records())
            self._drive(state)
            return self._conclude(origin)

    @contextmanager
    def _records(self) -> Iterator[None]:
        """Let the problem keep its own records of the run while it lasts."""
        records = self.engine.problem.records
        if records is None or self.folder is None:
            yield
            return
        records.open(self.folder)
        try:
            yield
        finally:
            records.close()

    def _drive(self, state: Mapping[str, Any] | None) -> None:
        resumed = None if state is None else self._restore(state)
        self._started = time.monotonic() - self._seconds
        with listening() as received, self._trackers(resumed) as trackers:
            for step, feedback in self.engine:
                self._last = feedback.metrics
                if step == 1 and len(self.engine.seeds or ()) > 1:
                    warn_of_equal_replicates(self.engine.optimizer.solution, feedback.metrics)
                pruned = self._record(trackers, step)
                long = bool(checkpoint.interrupted(self.folder))  # worth a checkpoint of its own
                if received or pruned or long or step % self.checkpoint_every == 0:
                    self._save(step)
                if received:
                    raise Interrupted(received[0], step)
                if pruned:
                    raise Pruned(step)

    def _checkpoint(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, or `None` where the run is to begin.

        Whatever is wrong with the folder is said here, before anything in it changes.
        """
        if self.folder is None:
            return None
        refuse_links(self.folder)
        refuse_misplaced(self.folder)
        read_provenance(self.folder)
        state = checkpoint.latest(self.folder / "checkpoints")
        if state is not None:
            refuse_foreign(self.folder / "checkpoints", state, self.config)
            self._log = log_until(self.folder, state)
        return state

    def _origin(self, resumed: bool) -> dict[str, Any]:
        """Write config and provenance; return where the run was started, also of a continued one.

        A folder may hold the provenance of a run of another config that never got to a checkpoint.
        """
        started = {"overrides": self.overrides, **provenance.provenance()}
        if self.folder is None:
            return started
        before = read_provenance(self.folder)
        if resumed and "overrides" not in before:
            print(f"{self.folder / 'provenance.json'} is missing or names no overrides; the "
                  f"result will name none.", file=sys.stderr)  # fmt: skip
        if not resumed:  # all numbers are then this process's; only what was asked for stays
            same = not configs.differences(before.get("config", {}), self.config)
            before = {"overrides": before["overrides"]} if same and "overrides" in before else {}
        origin = {**started, **before, "config": configs.as_json(self.config)}
        # What a folder from elsewhere says of these does not count.
        origin["config_dirs"], origin["trust"] = self.config_dirs, self.trust
        provenance.say_changes(self.folder, origin, started)
        for name in ("result.json", sums.NAME, "timing.json"):  # a result says: it is finished
            (self.folder / name).unlink(missing_ok=True)
        # Before config.yaml, which can be written again from it.
        write_json(self.folder / "provenance.json", origin)
        write_config(self.folder, self.config)
        sums.write(self.folder, [self.folder / "provenance.json"], {})
        write_readme(self.folder, self._label(), self.engine, self.config.get("started") == PYTHON)
        return origin

    def _restore(self, state: Mapping[str, Any]) -> int:
        self.engine.load_state_dict(state["engine"])
        self._last, self._seconds = dict(state["last"]), state["seconds"]
        self._saved = self.engine.outer_step
        if self.folder is not None:  # a kill may have come before
            checkpoint.prune(self.folder / "checkpoints", self._saved, self.keep_checkpoints)
        return self.engine.outer_step

    @contextmanager
    def _trackers(self, resumed: int | None) -> Iterator[list[Tracker]]:
        """Open the trackers, and close all of them even when one fails."""
        with ExitStack() as stack:
            trackers: list[Tracker] = [self.history]
            if self.folder is not None:
                discard_later(self.folder, resumed or 0)
                self._jsonl = Jsonl(self.folder / "metrics.jsonl", self._log)
                trackers = [self._jsonl]
                if self.service is not None:
                    service = self.service(self.folder, self.config, resumed)
                    trackers.append(stack.enter_context(service))
            if self.watch is not None:
                watch = self.watch(self._label(), self.engine.outer_steps, resumed or 0)
                watch.follow(self.engine.loop.progress)
                trackers.append(stack.enter_context(watch))
            yield [*trackers, GrowthWarning()]

    def _label(self) -> str:
        name = self.config.get("label") or self.config.get("name")
        return f"{name}, {seeds_in_words(self.engine.seed, self.engine.seeds)}"

    def _record(self, trackers: Sequence[Tracker], step: int) -> bool:
        """Evaluate and log what is due at an outer step; return whether the run is pruned."""
        evaluate = step == self.engine.outer_steps or step % self.eval_every == 0
        evaluated = self._evaluate(step) if evaluate else {}
        self._check_objective(evaluated)
        if not evaluate and step % self.log_every:
            return False
        spent = {f"budget/{unit}": amount for unit, amount in self.engine.ledger.spent.items()}
        elapsed = {"time/elapsed_s": time.monotonic() - self._started}
        values = values_of({**self._last, **evaluated, **spent, **elapsed})
        for tracker in trackers:
            tracker.record(step, values)
        if self.prune is None or not evaluate or step == self.engine.outer_steps:
            return False
        objective = means(values).get(self.config["objective"])
        return objective is not None and self.prune(step, objective)

    def _check_objective(self, evaluated: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` as soon as it is known that the objective is not a metric.

        At the first step, unless its name is one of held-out data, to be paid for or not all there
        yet.
        """
        name, problem = self._unchecked, self.engine.problem
        if name is None:
            return
        if name.startswith("eval/"):
            if not evaluated and problem.records is None and problem.metric_names is None:
                evaluated = self.engine.measured()
            if not evaluated or problem.metric_names is not None:
                return
        refuse_unknown(name, objectives({**self._last, **evaluated}, self._spent()))
        self._unchecked = None

    def _evaluate(self, step: int) -> dict[str, Tensor]:
        metrics = self.engine.measured()
        if self.folder is not None:
            reporting.take_snapshot(self.folder, self.engine, step)
        return metrics

    def _save(self, step: int) -> None:
        if step == self._saved or self.folder is None:
            return
        state = {
            "engine": self.engine.state_dict(),
            "solution": self.engine.optimizer.solution,
            "last": values_of(self._last),
            "seconds": time.monotonic() - self._started,
            "config": configs.as_json(self.config),
            "log": self._jsonl.commit(),
        }
        checkpoint.save(self.folder / "checkpoints", step, state, self.keep_checkpoints)
        self._saved = step

    def _conclude(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        step, config_hash = self.engine.outer_step, configs.config_hash(self.config)
        if step:
            self._save(step)
        self.engine.finish()
        measured = self._evaluate(step)
        if self.folder is not None:
            if self.figures and step:
                self.delivered = reporting.report(self.folder, self.engine)
            outer, inner = self.engine.optimizer.solution, self.engine.inner
            final = {"outer": outer, "inner": inner, "config_hash": config_hash}
            write_tensors(self.folder / "final.pt", final)
            export(outer, inner, self.folder)
        values = values_of({**self._last, **measured})
        metrics = means(values)
        result = {
            "name": self.config.get("name"),
            "config_hash": config_hash,
            "overrides": origin["overrides"],
            "metrics": {k: or_null(v) for k, v in metrics.items()},
            "budget": self._spent(),
            "outer_steps": step,
            "stopped": self.engine.stopped,
            **{k: origin[k] for k in ("versions", "commit", "hardware")},
        }
        if replicates := of_replicates(values):
            result["replicates"] = nullable(replicates)
        if self.engine.seeds is not None:
            result["seeds"] = list(self.engine.seeds)
        if self.engine.problem.resplit:
            result["resplit"] = self.engine.problem.resplit
        records = self.engine.problem.records
        if records is not None and records.authorisation is not None:
            result["authorisation"] = dict(records.authorisation)
        if self.folder is not None:
            self._write(self.folder, result)
        return result

    def _write(self, folder: Path, result: dict[str, Any]) -> None:
        """Write the result last: it says that everything else is there."""
        write_json(folder / "timing.json", {"seconds": time.monotonic() - self._started})
        write_readme(folder, self._label(), self.engine, self.config.get("started") == PYTHON)
        write_sums(folder, as_text(result))
        write_json(folder / "result.json", result)

    def _spent(self) -> dict[str, float]:
        """Return what the run has cost, by unit; records know what came after the last step."""
        records = self.engine.problem.records
        known = {} if records is None else records.spent()
        return {**self.engine.ledger.spent, **known}
