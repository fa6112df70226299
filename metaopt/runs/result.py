"""The result of a run, as a value: returned by a call in Python, or read from a folder."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.files.errors import FolderError
from metaopt.files.numbers import or_nan
from metaopt.files.reading import numbered, read_records
from metaopt.files.tensors import CheckpointError, read_tensors
from metaopt.runs import checkpoint
from metaopt.runs.configs import flatten
from metaopt.runs.continuing import EditedError, log_until, refuse_edited, refuse_foreign
from metaopt.runs.folder import read_config, result_of, started_with
from metaopt.runs.stopping import Stop, stop_of
from metaopt.runs.tracking import History, means, of_replicates

METAOPT_OBJECT = re.compile(r"metaopt([.:][^\W_]\w*)+")
"""Names of metaopt's objects; one that begins with _, such as __main__, is none."""


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        outer: the learned outer variable.
        inner: the state of the inner level: of a gradient problem a `GradientState` with `params`
            and `buffers`; `None` before the first step.
        metrics: the last value of each metric by name, such as `eval/loss`; NaN where it was not
            finite.
        history: the records of metrics.jsonl, as a list of dicts with `to_pandas()`.
        config: what was run.
        budget: what was spent, by unit.
        outer_steps: outer steps taken.
        finished: whether this is the end of the run; else it is its last checkpoint, or its best.
        stopped: what ended it before its last outer step, `by` and `text`, or `None`.
        delivered: what the problem says of its product.
        folder: where it is, or `None`.
        make_problem: makes `problem`.
        replicates: the last values of each seed by metric, where several were trained together;
            `metrics` are their means.
    """

    outer: Any
    inner: Any
    metrics: Mapping[str, float]
    history: History
    config: Mapping[str, Any]
    budget: Mapping[str, float]
    outer_steps: int
    finished: bool = True
    stopped: Stop | None = None
    delivered: str = ""
    folder: Path | None = None
    make_problem: Callable[[], Any] = field(default=lambda: None, repr=False)
    replicates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line for each part: shapes of tensors in place of their numbers."""
        state = "finished" if self.finished else "a checkpoint"
        steps = f"{self.outer_steps} outer steps" + (f", {self.stopped}" if self.stopped else "")
        metrics = {k: float(f"{v:.4g}") for k, v in self.metrics.items()}
        return (
            f"Result({str(self.folder) if self.folder else 'no folder'}: {state}, {steps}\n"
            f"  outer: {_shapes(self.outer)}\n  inner: {_shapes(self.inner)}\n"
            f"  metrics: {metrics})"
        )

    @cached_property
    def problem(self) -> Any:
        """The problem, made from the config where the run was read from a folder.

        Raises:
            ConfigError: it cannot be made again.
        """
        return self.make_problem()


def _shapes(value: Any, most: int = 6) -> str:
    """Return what a value holds: names and shapes, and the start of anything else."""
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if isinstance(value, GradientState):
        return _shapes(value.params)
    if isinstance(value, Mapping):
        some = [f"{key}: {_shapes(value[key], 0)}" for key in list(value)[:most]]
        more = [f"... ({len(value)} in all)"] if len(value) > most else []
        return f"{{{', '.join(some + more)}}}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_result(folder: Path, make_problem: Callable[[], Any], best: bool = False) -> Result:
    """Return the result of a finished run, the last checkpoint of one that is not, or the best.

    Raises:
        FolderError: the folder holds no run, one without a checkpoint, or a damaged file.
    """
    config, result = _config(folder), result_of(folder)
    if best:
        state = _knowing(config, lambda: checkpoint.best(folder / "checkpoints"))
        return _from_state(folder, config, state, make_problem)
    if result is None:
        return _unfinished(folder, config, make_problem)
    advice = f"Delete {folder / 'result.json'}; metaopt resume={folder} computes its end again."
    try:
        final = _knowing(config, lambda: read_tensors(folder / "final.pt"))
        outer, inner = final["outer"], final["inner"]
        if final["config_hash"] != result.get("config_hash"):
            raise CheckpointError("final.pt is of a run of another config.")
        budget, steps, stopped = result["budget"], result["outer_steps"], stop_of(result)
    except (CheckpointError, KeyError, TypeError) as error:
        raise FolderError(f"{folder} holds a damaged result: {error} {advice}") from error
    metrics = {k: or_nan(v) for k, v in result["metrics"].items()}
    return Result(
        outer, inner, metrics, read_history(folder), config, budget, steps, stopped=stopped,
        folder=folder, make_problem=make_problem, replicates=replicates_of(result),
    )  # fmt: skip


def replicates_of(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the values of each replicate that a result.json, or a record of a log, holds."""
    return {k: [or_nan(x) for x in v] for k, v in (result.get("replicates") or {}).items()}


def _config(folder: Path) -> dict[str, Any]:
    """Return what the run was started with, whatever config.yaml says by now."""
    config = read_config(folder)
    try:
        refuse_edited(folder, config)
    except EditedError as error:
        print(f"{error}\nLoaded is what the run was started with.", file=sys.stderr)
        return started_with(folder) or config
    return config


def _unfinished(folder: Path, config: Mapping[str, Any], make_problem: Callable[[], Any]) -> Result:
    state = _knowing(config, lambda: checkpoint.latest(folder / "checkpoints"))
    if state is None:
        raise FolderError(f"{folder} holds a run without a checkpoint yet: nothing to load.")
    return _from_state(folder, config, state, make_problem)


def _from_state(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    make_problem: Callable[[], Any],
) -> Result:
    """Return the result that a checkpoint holds, with what was logged until then."""
    refuse_foreign(folder / "checkpoints", state, config)
    engine, last = state["engine"], dict(means(state["last"]))
    replicates = of_replicates(state["last"])
    history = History(r for _, r in numbered(log_until(folder, state), folder / "metrics.jsonl"))
    for record in history:
        last |= {k: or_nan(v) for k, v in record.items() if k[:5] == "eval/"}
        replicates |= {k: v for k, v in replicates_of(record).items() if k[:5] == "eval/"}
    return Result(
        state["solution"], engine["inner"], last, history, config, engine["spent"],
        engine["outer_step"], finished=False, stopped=stop_of({"stopped": engine["stop"]}),
        folder=folder,
        make_problem=make_problem, replicates=replicates,
    )  # fmt: skip


def _knowing(config: Mapping[str, Any], read: Callable[[], Any]) -> Any:
    """Return what is read, importing the classes of metaopt that a config names if it needs them.

    No others: the folder may be from elsewhere.
    """
    try:
        return read()
    except tree.UnknownStateError:
        named = [v for k, v in flatten(config) if k.rpartition(".")[2] in ("_target_", "_class_")]
        for name in filter(METAOPT_OBJECT.fullmatch, map(str, named)):
            with suppress(ImportError, AttributeError, ValueError):
                pkgutil.resolve_name(name)
        return read()


def read_history(folder: Path) -> History:
    """Return the records of a folder's metrics.jsonl; none where it is deleted."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        print(f"{path} is missing; the history is empty.", file=sys.stderr)
        return History()
    return History(read_records(path))
