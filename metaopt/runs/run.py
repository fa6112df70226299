"""One run: logging, evaluation, checkpoints, and a result at the true end.

The folder holds `config.yaml`, `README.md`, `provenance.json` (with the config that the run was
started with), `metrics.jsonl`, `checkpoints/`, `snapshots/` and, once the run is over, `figures/`,
the learned `outer` and `inner` (see `metaopt.runs.export`), `final.pt` (both as they are),
`timing.json` and `result.json`. All but the times are functions of the config: a continued run
writes the same `result.json`, to the byte. Without a folder a run writes nothing.

Of several processes in a group (`metaopt.engine.distributed`) each drives an engine of its own, in
step with the others, and the first alone writes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import Engine, distributed
from metaopt.engine.across_ranks import refuse_different
from metaopt.engine.protocols import Feedback
from metaopt.engine.ranges import check_ranges
from metaopt.engine.seeds import seeds_in_words
from metaopt.files import sums
from metaopt.files.lock import locked
from metaopt.files.numbers import or_null
from metaopt.files.tensors import write_tensors
from metaopt.files.writing import as_text, write_json
from metaopt.runs import checkpoint, checks, configs, provenance, reporting, stopping
from metaopt.runs.checkpointer import Checkpointer
from metaopt.runs.contents import (
    discard_later,
    empty_if_refused,
    write_readme,
    write_sums,
)
from metaopt.runs.continuing import extensions, refuse_finished, write_config
from metaopt.runs.export import export
from metaopt.runs.folder import read_provenance
from metaopt.runs.interrupts import SIGNALS, Interrupted, Pruned, listening, noting
from metaopt.runs.objective import NamedMetrics
from metaopt.runs.progress import watcher
from metaopt.runs.selection import Selection
from metaopt.runs.tracking import (
    Guarded,
    History,
    Jsonl,
    Tracker,
    first_record,
    means,
    nullable,
    of_replicates,
    refuse_unusable,
    values_of,
)
from metaopt.runs.warnings import (
    DivergenceWarning,
    GrowthWarning,
    UpdateWarning,
    warn_of_equal_replicates,
    warn_of_search,
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
        folder: the run's folder, which must exist and which all processes see; `None` writes
            nothing.
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
        selection: ends the run early and keeps its best checkpoint.

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
        selection: Selection | None = None,
    ) -> None:
        self.engine, self.config = engine, config
        engine.loop.folder = folder
        self.folder = folder if distributed.rank() == 0 else None
        self.service, self.overrides = service, list(overrides)
        self.config_dirs, self.trust = list(config_dirs), list(trust)
        self.log_every, self.eval_every = log_every, eval_every
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.figures, self.watch, self.prune = figures, watch, prune
        refuse_unusable(service)
        check_ranges(self, *(f"{name} >= 1" for name in SETTINGS[:-1]), "figures")
        self._last: Mapping[str, float | Tensor | list[float]] = {}
        self._seconds = 0.0
        self._cpu_seconds: float | None = 0.0  # None: unknown, after an older checkpoint
        self.checkpointer = Checkpointer(engine, config, keep_checkpoints, self._state)
        self.selection = selection or Selection()
        self.selection.check(engine, folder, eval_every)
        named = {**self.selection.metrics, "objective": config.get("objective")}
        self._named = NamedMetrics(named, engine, self.selection.refuse_unclear)
        self.delivered, self.history = "", History()

    def __call__(self) -> dict[str, Any]:
        """Run to the end and return what `result.json` holds.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after a checkpoint was written.
            Pruned: likewise, where `prune` says so.
            CheckpointError: there are checkpoints and none can be read.
            FolderInUseError: another process writes to the folder, or has finished the run.
            FolderError: its last checkpoint is of a run of another config, it holds a symbolic
                link or a damaged file.
            NonFiniteError: from the engine.
            OSError: the folder cannot be written.
        """
        with ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(locked(self.folder))
                refuse_finished(self.folder, self.config)
                stack.enter_context(empty_if_refused(self.folder, self.engine))
                stack.enter_context(noting(self.folder))
            state = self.checkpointer.latest()
            origin = distributed.from_first(lambda: self._origin(resumed=state is not None))
            stack.enter_context(self._records())
            resumed = None if state is None else self._restore(state)
            services = self._services(resumed)
            for service in services:
                stack.enter_context(service)
            self._drive(services, resumed)
            result = self._conclude(origin)
            for service in services:  # after the result, which a kill then cannot take
                service.conclude(result)
            return result

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

    def _drive(self, services: Sequence[Tracker], resumed: int | None) -> None:
        self._started = time.monotonic() - self._seconds
        self._cpu_started = time.process_time()
        with listening() as received, self._watched(resumed) as watches:
            logs = [self.history if self.folder is None else self._jsonl]
            first = first_record(self.checkpointer.log).get("outer/loss")
            trackers = [*logs, *services, *watches, GrowthWarning(), DivergenceWarning(first)]
            updates = UpdateWarning(self.engine)
            warn_of_search(self.engine)
            self._save_best(resumed or 0)  # a kill may have come before
            for step, feedback in self._steps():
                self._last = feedback.metrics
                if step == 1 and len(self.engine.seeds or ()) > 1:
                    warn_of_equal_replicates(self.engine.optimizer.solution, feedback.metrics)
                if step == 1:
                    refuse_different(self.engine)
                updates.look(step, feedback.grad)
                pruned = self._record(trackers, step)
                long = bool(checkpoint.interrupted(self.folder))  # worth a checkpoint of its own
                # A signal comes to processes in different steps, or to one of them alone.
                flags = {"pruned": pruned, "long": long} | {str(s): s in received for s in SIGNALS}
                flags = distributed.on_any_rank(flags, torch.as_tensor(feedback.value))
                if any(flags.values()) or step % self.checkpoint_every == 0:
                    self.checkpointer.save(step)
                self._save_best(step)
                for signum in SIGNALS:
                    if flags[str(signum)]:
                        raise Interrupted(signum, step)
                if flags["pruned"]:
                    raise Pruned(step)

    def _steps(self) -> Iterator[tuple[int, Feedback]]:
        """Yield what the engine does, until that is over or the run ends early."""
        outer_steps = iter(self.engine)
        while self.selection.stopped is None and (pair := next(outer_steps, None)) is not None:
            yield pair

    def _origin(self, resumed: bool) -> dict[str, Any]:
        """Write config and provenance; return where the run was started, also of a continued one.

        A folder may hold the provenance of a run of another config that never got to a checkpoint.
        """
        started = {"overrides": self.overrides, "processes": distributed.world_size()}
        started |= provenance.provenance()
        if self.folder is None:
            return started
        before = read_provenance(self.folder)
        if resumed and "overrides" not in before:
            print(f"{self.folder / 'provenance.json'} is missing or names no overrides; the "
                  f"result will name none.", file=sys.stderr)  # fmt: skip
        if not resumed:  # all numbers are then this process's; only what was asked for stays
            same = not configs.differences(before.get("config", {}), self.config)
            before = {"overrides": before["overrides"]} if same and "overrides" in before else {}
        if resumed and (extended := extensions(before, self.config)):
            before["extended"] = extended
        origin = {**started, **before, "config": configs.as_json(self.config)}
        # What a folder from elsewhere says of these does not count.
        origin["config_dirs"], origin["trust"] = self.config_dirs, self.trust
        provenance.say_changes(self.folder, origin, started)
        # A result says: it is finished; an error, that it has failed.
        for name in ("result.json", sums.NAME, "timing.json", stopping.FILE, "error.log"):
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
        self._cpu_seconds = state.get("cpu_seconds")
        step = self.engine.outer_step
        self.checkpointer.prune(step)
        self.selection.load_state_dict(state.get("selection"))
        return step

    def _services(self, resumed: int | None) -> list[Guarded]:
        """Begin the log, from which a service reads what came before; make the service."""
        if self.folder is None:
            return []
        discard_later(self.folder, resumed or 0)
        self._jsonl = Jsonl(self.folder / "metrics.jsonl", self.checkpointer.log)
        if self.service is None:
            return []
        make = partial(self.service, self.folder, self.config, resumed)
        return [Guarded(make, self.folder)]

    @contextmanager
    def _watched(self, resumed: int | None) -> Iterator[list[Tracker]]:
        """Show the run to a person while it is driven."""
        if self.watch is None:
            yield []
            return
        watch = self.watch(self._label(), self.engine.outer_steps, resumed or 0)
        watch.follow(self.engine.loop.progress)
        with watch:
            yield [watch]

    def _label(self) -> str:
        name = self.config.get("label") or self.config.get("name")
        return f"{name}, {seeds_in_words(self.engine.seed, self.engine.seeds)}"

    def _record(self, trackers: Sequence[Tracker], step: int) -> bool:
        """Evaluate and log what is due at an outer step; return whether the run is pruned."""
        last = step == self.engine.outer_steps or self.engine.stopped is not None
        evaluate = last or step % self.eval_every == 0
        evaluated = self._evaluate(step) if evaluate else {}
        self._named.check(self._last, evaluated, self._spent)
        if not evaluate and step % self.log_every:
            return False
        spent = {f"budget/{unit}": amount for unit, amount in self.engine.ledger.spent.items()}
        elapsed = {"time/elapsed_s": time.monotonic() - self._started}
        values = values_of({**self._last, **evaluated, **spent, **elapsed})
        for tracker in trackers:
            tracker.record(step, values)
        if evaluate:
            self.selection.update(step, means(values), scheduled=step % self.eval_every == 0)
        over = last or self.selection.stopped is not None
        if self.prune is None or not evaluate or over:
            return False
        objective = means(values).get(self.config["objective"])
        return objective is not None and self.prune(step, objective)

    def _evaluate(self, step: int) -> dict[str, Tensor]:
        # By the first process, so that no last bit makes another end the run or keep another best.
        metrics = distributed.from_first(self.engine.measured)
        if self.folder is not None:
            reporting.take_snapshot(self.folder, self.engine, step)
        return metrics

    def _save_best(self, step: int) -> None:
        """Write the best checkpoint where that is what the run is at."""
        if step and step == self.selection.best.step:
            self.checkpointer.save_best(step)

    def _state(self) -> dict[str, Any]:
        return {
            "engine": self.engine.state_dict(),
            "solution": self.engine.optimizer.solution,
            "last": values_of(self._last),
            **self._timing(),
            "config": configs.as_json(self.config),
            "log": self._jsonl.commit(),
            "selection": self.selection.state_dict(),
        }

    def _conclude(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        step, config_hash = self.engine.outer_step, configs.config_hash(self.config)
        if step:
            self.checkpointer.save(step)
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
            "stopped": stopping.as_json(self._stop()),
            **self.selection.result(),
            **{k: origin[k] for k in ("versions", "commit", "hardware", "processes")},
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

    def _stop(self) -> stopping.Stop | None:
        """Return what has ended the run before its last outer step."""
        if unit := self.engine.ledger.exhausted:
            return stopping.limit_reached(unit)
        if reason := self.engine.stopped:
            return stopping.Stop("problem", reason)
        return self.selection.stopped

    def _write(self, folder: Path, result: dict[str, Any]) -> None:
        """Write the result last: it says that everything else is there."""
        write_json(folder / "timing.json", self._timing())
        write_readme(folder, self._label(), self.engine, self.config.get("started") == PYTHON)
        write_sums(folder, as_text(result))
        write_json(folder / "result.json", result)
        checks.discard_stale(folder)

    def _timing(self) -> dict[str, float | None]:
        """Return seconds and CPU seconds of the run, with those before a resume."""
        cpu = self._cpu_seconds
        return {
            "seconds": time.monotonic() - self._started,
            "cpu_seconds": None if cpu is None else cpu + time.process_time() - self._cpu_started,
        }

    def _spent(self) -> dict[str, float]:
        """Return what the run has cost, by unit; records know what came after the last step."""
        records = self.engine.problem.records
        known = {} if records is None else records.spent()
        return {**self.engine.ledger.spent, **known}
