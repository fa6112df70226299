"""One run: logging, evaluation, checkpoints, and a result at the true end.

The folder holds `config.yaml`, `README.md`, `provenance.json` (with the config that the run was
started with), `metrics.jsonl`, `checkpoints/`, `snapshots/` and, once the run is over, `figures/`,
the learned `outer` and `inner` (see `metaopt.runs.export`), `final.pt` (both as they are),
`timing.json` and `result.json`. All but the times are functions of the config: a continued run
writes the same `result.json`, to the byte. Without a folder a run writes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import Engine
from metaopt.runs import checkpoint, provenance
from metaopt.runs.continuing import refuse_foreign, write_config
from metaopt.runs.export import export
from metaopt.runs.interrupts import Interrupted, listening
from metaopt.runs.progress import watcher
from metaopt.runs.tracking import History, Jsonl, Tracker, floats, or_null

RUN_FILES = (
    "README.md", "checkpoints", "config.yaml", "error.log", "figures", "final.pt", "metrics.jsonl",
    "provenance.json", "result.json", "snapshots", "tensorboard", "timing.json", "wandb",
)  # fmt: skip
"""What every run may have in its folder; the rest is the problem's."""

PYTHON = "from Python"
"""What the key `started` of a config says of a run that no command line describes."""

SETTINGS = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "figures")
"""Arguments of a `Run` that are keys of a config."""

Service = Callable[..., Tracker]
"""Makes a further tracker: called with `(folder, config, resume_step)`."""

Watch = Callable[[str, int, int], Tracker]


class Run:
    """Drives an engine to its end, from the last checkpoint of its folder where there is one.

    Args:
        engine: made and not yet iterated.
        folder: the run's folder, which must exist; `None` writes nothing.
        config: the resolved config, hashed into the result and handed to the trackers.
        service: makes the tracker used in addition to file and console, or `None`.
        overrides: what the command line changed, for the result.
        config_dirs: the user's config folders, which a continuation needs.
        log_every, eval_every, checkpoint_every: outer steps between two records, two evaluations
            on held-out data, two checkpoints; each >= 1.
        keep_checkpoints: how many of the newest checkpoints are kept, >= 1.
        figures: whether to draw learning curves and the problem's own figures at the end, and to
            write what it delivers.
        watch: makes what a person sees, from (label, outer steps in all, outer steps done);
            `None` shows nothing.

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
        log_every: int = 1,
        eval_every: int = 10,
        checkpoint_every: int = 50,
        keep_checkpoints: int = 2,
        figures: bool = True,
        watch: Watch | None = watcher,
    ) -> None:
        intervals = {
            "log_every": log_every, "eval_every": eval_every, "checkpoint_every": checkpoint_every,
            "keep_checkpoints": keep_checkpoints,
        }  # fmt: skip
        for name, value in intervals.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1; got {value}.")
        self.engine, self.folder, self.config = engine, folder, config
        self.service, self.overrides = service, list(overrides)
        self.config_dirs = list(config_dirs)
        self.log_every, self.eval_every = log_every, eval_every
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.figures, self.watch = figures, watch
        self._last: Mapping[str, float | Tensor] = {}
        self._seconds = 0.0
        self._saved: int | None = None
        self.delivered, self.history = "", History()

    def __call__(self) -> dict[str, Any]:
        """Run to the end and return what `result.json` holds.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after a checkpoint was written.
            CheckpointError: there are checkpoints and none can be read.
            ConfigError: the last checkpoint is of a run of another config.
            NonFiniteError: from the engine.
            OSError: the folder cannot be written.
        """
        state = self._checkpoint()
        origin = self._origin(resumed=state is not None)
        if self.folder is not None:
            checkpoint.write_text(self.folder / "README.md", self._readme(self.folder))
        with self._records():
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
                self._record(trackers, step)
                if received:
                    self._save(step)
                    raise Interrupted(received[0], step)
                if step % self.checkpoint_every == 0:
                    self._save(step)

    def _checkpoint(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, or `None` where the run is to begin."""
        folder = self.folder and self.folder / "checkpoints"
        state = None if folder is None else checkpoint.latest(folder)
        if folder is not None and state is not None:
            refuse_foreign(folder, state, self.config)
        return state

    def _origin(self, resumed: bool) -> dict[str, Any]:
        """Write config and provenance; return where the run was started, also of a continued one.

        A folder may hold the provenance of a run of another config that never got to a checkpoint.
        """
        started = {"overrides": self.overrides, **provenance.provenance()}
        if self.folder is None:
            return started
        for name in ("result.json", "timing.json"):  # a folder with a result counts as finished
            (self.folder / name).unlink(missing_ok=True)
        write_config(self.folder, self.config)
        path = self.folder / "provenance.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        if not resumed and provenance.differences(before.get("config", {}), self.config):
            before = {}
        origin = {**started, **before, "config": provenance.as_json(self.config)}
        if self.config_dirs:
            origin["config_dirs"] = self.config_dirs
        if origin != before:
            checkpoint.write_json(path, origin)
        return origin

    def _restore(self, state: Mapping[str, Any]) -> int:
        self.engine.load_state_dict(state["engine"])
        self._last, self._seconds = dict(state["last"]), state["seconds"]
        self._saved = self.engine.outer_step
        return self.engine.outer_step

    @contextmanager
    def _trackers(self, resumed: int | None) -> Iterator[list[Tracker]]:
        """Open the trackers, and close all of them even when one fails."""
        with ExitStack() as stack:
            trackers: list[Tracker] = [self.history]
            if self.folder is not None:
                trackers = [Jsonl(self.folder / "metrics.jsonl", resumed)]
                if self.service is not None:
                    service = self.service(self.folder, self.config, resumed)
                    trackers.append(stack.enter_context(service))
            if self.watch is not None:
                watch = self.watch(self._label(), self.engine.outer_steps, resumed or 0)
                trackers.append(stack.enter_context(watch))
            yield trackers

    def _label(self) -> str:
        name = self.config.get("label") or self.config.get("name")
        return f"{name}, seed {self.engine.seed}"

    def _readme(self, folder: Path) -> str:
        """Return what this run is, how to resume and load it, and what else it has delivered."""
        roles = self.engine.problem, self.engine.estimator, self.engine.optimizer
        parts = ", ".join(type(role).__name__ for role in roles)
        resume = f"`{provenance.resume_command(folder)}`"
        if self.config.get("started") == PYTHON:
            resume = f'`metaopt.resume("{folder}", problem=<the one it was started with>)`'
        return (
            f"{self._label()}: {parts}; {self.engine.outer_steps} outer steps.\n\n"
            f"To resume it: {resume}.\n\n"
            f'To load it: `metaopt.load("{folder}")`; `outer.*` and `inner.safetensors` are for '
            f"other programs.\n{_products(folder)}"
        )

    def _record(self, trackers: Sequence[Tracker], step: int) -> None:
        evaluate = step == self.engine.outer_steps or step % self.eval_every == 0
        if not evaluate and step % self.log_every:
            return
        spent = {f"budget/{unit}": amount for unit, amount in self.engine.ledger.spent.items()}
        elapsed = {"time/elapsed_s": time.monotonic() - self._started}
        evaluated = _means(self._evaluate(step)) if evaluate else {}
        numbers = floats({**self._last, **evaluated, **spent, **elapsed})
        for tracker in trackers:
            tracker.log(step, numbers)

    def _evaluate(self, step: int) -> dict[str, Tensor]:
        metrics = self.engine.measured()
        report = self.engine.problem.report
        if self.folder is not None and report is not None and self.engine.inner is not None:
            snapshot = report.snapshot(self.engine.optimizer.solution, self.engine.inner)
            if snapshot is not None:
                folder = self.folder / "snapshots"
                folder.mkdir(exist_ok=True)
                checkpoint.write_tensors(folder / f"step_{step:08d}.pt", snapshot)
        return metrics

    def _save(self, step: int) -> None:
        if step == self._saved or self.folder is None:
            return
        state = {
            "engine": self.engine.state_dict(),
            "solution": self.engine.optimizer.solution,
            "last": floats(self._last),
            "seconds": time.monotonic() - self._started,
            "config": provenance.as_json(self.config),
        }
        checkpoint.save(self.folder / "checkpoints", step, state, self.keep_checkpoints)
        self._saved = step

    def _conclude(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        step = self.engine.outer_step
        if step:
            self._save(step)
        self.engine.finish()
        measured = self._evaluate(step)
        if self.folder is not None:
            if self.figures and step:
                self._report(self.folder)
            outer, inner = self.engine.optimizer.solution, self.engine.inner
            checkpoint.write_tensors(self.folder / "final.pt", {"outer": outer, "inner": inner})
            export(outer, inner, self.folder)
        metrics = {**floats(self._last), **_means(measured)}
        result = {
            "name": self.config.get("name"),
            "config_hash": provenance.config_hash(self.config),
            "overrides": origin["overrides"],
            "metrics": {k: or_null(v) for k, v in metrics.items()},
            "budget": self._spent(),
            "outer_steps": step,
            "stopped": self.engine.stopped,
            **{k: origin[k] for k in ("versions", "commit", "hardware")},
        }
        replicates = {name: value.tolist() for name, value in measured.items() if value.ndim}
        if replicates:
            result["replicates"] = {k: list(map(or_null, v)) for k, v in replicates.items()}
        if self.engine.problem.resplit:
            result["resplit"] = self.engine.problem.resplit
        records = self.engine.problem.records
        if records is not None and records.authorisation is not None:
            result["authorisation"] = dict(records.authorisation)
        if self.folder is not None:
            seconds = time.monotonic() - self._started
            checkpoint.write_json(self.folder / "timing.json", {"seconds": seconds})
            checkpoint.write_json(self.folder / "result.json", result)
            checkpoint.write_text(self.folder / "README.md", self._readme(self.folder))
        return result

    def _spent(self) -> dict[str, float]:
        """Return what the run has cost, by unit; records know what came after the last step."""
        records = self.engine.problem.records
        known = {} if records is None else records.spent()
        return {**self.engine.ledger.spent, **known}

    def _report(self, folder: Path) -> None:
        """Draw the learning curve and what the problem draws; write what it delivers."""
        # matplotlib takes longer to import than a small run takes to finish.
        from metaopt.report.figures import learning_curve

        learning_curve(folder)
        report = self.engine.problem.report
        if report is None or self.engine.inner is None:
            return
        saved = checkpoint.steps(folder / "snapshots")
        snapshots = [(step, checkpoint.read_tensors(path)) for step, path in saved]
        figures = folder / "figures"
        figures.mkdir(exist_ok=True)
        report.figures(snapshots, figures)
        solution, inner = self.engine.optimizer.solution, self.engine.inner
        self.delivered = report.deliver(solution, inner, snapshots, folder)


def _products(folder: Path) -> str:
    """Return a paragraph with the files of a folder that its problem has delivered, or nothing."""
    names = [f"`{p.name}{'/' * p.is_dir()}`" for p in sorted(folder.iterdir()) if _delivered(p)]
    if not names:
        return ""
    return f"\nDelivered: {', '.join(names)}; the docs' page of the family has how to use them.\n"


def _delivered(path: Path) -> bool:
    return path.name not in RUN_FILES and not path.name.startswith((".", "outer.", "inner."))


def _means(measured: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in measured.items()}


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the content of the folder's `result.json`, or `None` while the run is not over."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def prepare_torch(threads: int, device: str) -> None:
    """Set the number of threads and check that the device is there.

    Raises:
        ValueError: threads below 1, or a device that torch does not see.
    """
    if threads < 1:
        raise ValueError(f"threads must be >= 1; got {threads}.")
    torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(". ")
        raise ValueError(f"device={device} cannot be used: {reason}. Use device=cpu.") from error
