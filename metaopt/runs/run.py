"""One run in one folder: logging, evaluation, checkpoints, and a result at the true end.

The folder holds `config.yaml` (written by the caller), `provenance.json`, `metrics.jsonl`,
`checkpoints/`, `snapshots/`, `figures/`, `final.pt` and, once the run is over, `timing.json` and
`result.json`. All but the times are functions of the config: a run that was killed and continued
writes the same `result.json`, to the byte.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import Engine
from metaopt.runs import checkpoint, provenance
from metaopt.runs.progress import watcher
from metaopt.runs.tracking import Jsonl, Scalars, Tee, Tracker, floats

Service = Callable[..., Tracker]
"""Makes a further tracker: called with `(folder, config, resume_step)`."""


class Interrupted(Exception):
    """The run stopped between two outer steps because a signal asked for it.

    Args:
        signum: the signal.
        step: the outer step whose checkpoint was written.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"{signal.Signals(signum).name} after outer step {step}")
        self.signum, self.step = signum, step


class Run:
    """Drives an engine into a folder, from the last checkpoint where there is one.

    Args:
        engine: made and not yet iterated.
        folder: the run's folder; must exist.
        config: the resolved config, hashed into the result and handed to the trackers.
        service: makes the tracker beside file and console, or `None`.
        overrides: what the command line changed, for the result.
        log_every, eval_every, checkpoint_every: outer steps between two records, two evaluations
            on held-out data, two checkpoints; each >= 1.
        keep_checkpoints: how many of the newest checkpoints are kept, >= 1.
        figures: whether to draw learning curves and the problem's own figures at the end, and to
            write what it delivers.
        watch: makes what a person sees, from (label, outer steps in all, outer steps done).

    Attributes:
        delivered: what the problem says of its product, once the run is over.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        config: Mapping[str, Any],
        service: Service | None = None,
        overrides: Sequence[str] = (),
        *,
        log_every: int = 1,
        eval_every: int = 10,
        checkpoint_every: int = 50,
        keep_checkpoints: int = 2,
        figures: bool = True,
        watch: Callable[[str, int, int], Tracker] = watcher,
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
        self.log_every, self.eval_every = log_every, eval_every
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.figures, self.watch = figures, watch
        self._last: Scalars = {}
        self._seconds = 0.0
        self._saved: int | None = None
        self.delivered = ""

    def __call__(self) -> dict[str, Any]:
        """Run to the end and return what `result.json` holds.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after a checkpoint was written.
            CheckpointError: there are checkpoints and none can be read.
            NonFiniteError: from the engine.
            OSError: the folder cannot be written.
        """
        origin = self._origin()
        with self._records():
            return self._drive(origin)

    @contextmanager
    def _records(self) -> Iterator[None]:
        """Let the problem keep its own records of the run while it lasts."""
        records = self.engine.problem.records
        if records is None:
            yield
            return
        records.open(self.folder)
        try:
            yield
        finally:
            records.close()

    def _drive(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        resumed = self._restore()
        self._started = time.monotonic() - self._seconds
        with listening() as received, self._trackers(resumed) as tracker:
            for step, feedback in self.engine:
                self._last = feedback.metrics
                self._record(tracker, step)
                if received:
                    self._save(step)
                    raise Interrupted(received[0], step)
                if step % self.checkpoint_every == 0:
                    self._save(step)
        return self._conclude(origin)

    def _origin(self) -> dict[str, Any]:
        """Return where the run was started; written once, so that a continuation reports it."""
        path = self.folder / "provenance.json"
        if not path.exists():
            origin = {"overrides": self.overrides, **provenance.provenance()}
            checkpoint.write_text(path, json.dumps(origin, indent=1) + "\n")
        return json.loads(path.read_text())

    def _restore(self) -> int | None:
        found = checkpoint.latest(self.folder / "checkpoints")
        if found is None:
            return None
        checkpoint.report_damage(found)
        self.engine.load_state_dict(found.state["engine"])
        self._last, self._seconds = dict(found.state["last"]), found.state["seconds"]
        self._saved = self.engine.outer_step
        return self.engine.outer_step

    def _trackers(self, resumed: int | None) -> Tee:
        trackers: list[Tracker] = [Jsonl(self.folder / "metrics.jsonl", resumed)]
        if self.service is not None:
            trackers.append(self.service(self.folder, self.config, resumed))
        return Tee(*trackers, self.watch(self._label(), self.engine.outer_steps, resumed or 0))

    def _label(self) -> str:
        name = self.config.get("label") or self.config.get("name") or self.folder.name
        return f"{name}, seed {self.engine.seed}"

    def _record(self, tracker: Tracker, step: int) -> None:
        evaluate = step == self.engine.outer_steps or step % self.eval_every == 0
        if not evaluate and step % self.log_every:
            return
        spent = {f"budget/{unit}": amount for unit, amount in self.engine.ledger.spent.items()}
        elapsed = {"time/elapsed_s": time.monotonic() - self._started}
        evaluated = _means(self._evaluate(step)) if evaluate else {}
        tracker.log(step, {**self._last, **evaluated, **spent, **elapsed})

    def _evaluate(self, step: int) -> dict[str, Tensor]:
        metrics = self.engine.measured()
        report = self.engine.problem.report
        if report is not None and self.engine.inner is not None:
            snapshot = report.snapshot(self.engine.optimizer.solution, self.engine.inner)
            if snapshot is not None:
                folder = self.folder / "snapshots"
                folder.mkdir(exist_ok=True)
                checkpoint.write_tensors(folder / f"step_{step:08d}.pt", snapshot)
        return metrics

    def _save(self, step: int) -> None:
        if step == self._saved:
            return
        state = {
            "engine": self.engine.state_dict(),
            "last": floats(self._last),
            "seconds": time.monotonic() - self._started,
        }
        checkpoint.save(self.folder / "checkpoints", step, state, self.keep_checkpoints)
        self._saved = step

    def _conclude(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        step = self.engine.outer_step
        if step:
            self._save(step)
        self.engine.finish()
        measured = self._evaluate(step)
        if self.figures and step:
            self._report()
        final = {"outer": self.engine.optimizer.solution, "inner": self.engine.inner}
        checkpoint.write_tensors(self.folder / "final.pt", final)
        result = {
            "name": self.config.get("name"),
            "config_hash": provenance.config_hash(self.config),
            "overrides": origin["overrides"],
            "metrics": _finite({**floats(self._last), **_means(measured)}),
            "budget": self._spent(),
            "outer_steps": step,
            "stopped": self.engine.stopped,
            **{k: origin[k] for k in ("versions", "commit", "hardware")},
        }
        replicates = {name: value.tolist() for name, value in measured.items() if value.ndim}
        if replicates:
            result["replicates"] = {k: list(map(_or_null, v)) for k, v in replicates.items()}
        records = self.engine.problem.records
        if records is not None and records.authorisation is not None:
            result["authorisation"] = dict(records.authorisation)
        self._write("timing.json", {"seconds": time.monotonic() - self._started})
        self._write("result.json", result)
        return result

    def _spent(self) -> dict[str, float]:
        """Return what the run has cost, by unit; records know what came after the last step."""
        records = self.engine.problem.records
        known = {} if records is None else records.spent()
        return {**self.engine.ledger.spent, **known}

    def _report(self) -> None:
        """Draw the learning curve and what the problem draws; write what it delivers."""
        # matplotlib takes longer to import than a small run takes to finish.
        from metaopt.report.figures import learning_curve

        learning_curve(self.folder)
        report = self.engine.problem.report
        if report is None or self.engine.inner is None:
            return
        saved = checkpoint.steps(self.folder / "snapshots")
        snapshots = [(step, checkpoint.read_tensors(path)) for step, path in saved]
        figures = self.folder / "figures"
        figures.mkdir(exist_ok=True)
        report.figures(snapshots, figures)
        solution, inner = self.engine.optimizer.solution, self.engine.inner
        self.delivered = report.deliver(solution, inner, snapshots, self.folder)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        checkpoint.write_text(self.folder / name, json.dumps(content, indent=1) + "\n")


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics with `None`, JSON's null, for what is not finite."""
    return {name: _or_null(value) for name, value in metrics.items()}


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _means(measured: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in measured.items()}


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the content of the folder's `result.json`, or `None` while the run is not over."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


@contextmanager
def listening() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; the second one kills.

    Outside the main thread, where Python sets no handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device} cannot be used: {reason} Use device=cpu.") from error
