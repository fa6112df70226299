"""The result of a run, as a value: returned by a call in Python, or read from a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.report.figures import records
from metaopt.runs import checkpoint
from metaopt.runs.errors import ConfigError
from metaopt.runs.run import result_of
from metaopt.runs.tracking import History


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
        finished: whether the run is finished; else this is its last checkpoint.
        stopped: why it ended before its last outer step, or `None`.
        delivered: what the problem says of its product.
        folder: where it is, or `None`.
        make_problem: makes `problem`.
    """

    outer: Any
    inner: Any
    metrics: Mapping[str, float]
    history: History
    config: Mapping[str, Any]
    budget: Mapping[str, float]
    outer_steps: int
    finished: bool = True
    stopped: str | None = None
    delivered: str = ""
    folder: Path | None = None
    make_problem: Callable[[], Any] = field(default=lambda: None, repr=False)

    def __repr__(self) -> str:
        """Return one line for each part: shapes of tensors in place of their numbers."""
        state = "finished" if self.finished else "not finished"
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


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a run's folder.

    Raises:
        ConfigError: the folder holds no run.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is no run's folder: {path} is missing.")
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def read_result(folder: Path, make_problem: Callable[[], Any]) -> Result:
    """Return the result of a finished run, or the last checkpoint of one that is not.

    Raises:
        ConfigError: the folder holds no run, or one without a checkpoint.
        CheckpointError: a file is damaged.
    """
    config, history = read_config(folder), read_history(folder)
    result = result_of(folder)
    if result is not None:
        final = checkpoint.read_tensors(folder / "final.pt")
        metrics = {k: math.nan if v is None else v for k, v in result["metrics"].items()}
        return Result(
            final["outer"], final["inner"], metrics, history, config, result["budget"],
            result["outer_steps"], stopped=result["stopped"], folder=folder,
            make_problem=make_problem,
        )  # fmt: skip
    state = checkpoint.latest(folder / "checkpoints")
    if state is None:
        raise ConfigError(f"{folder} holds a run without a checkpoint yet: nothing to load.")
    engine, last = state["engine"], dict(state["last"])
    history = History(r for r in history if r["outer_step"] <= engine["outer_step"])
    for record in history:
        last |= {k: math.nan if v is None else v for k, v in record.items() if k[:5] == "eval/"}
    return Result(
        state["solution"], engine["inner"], last, history, config, engine["spent"],
        engine["outer_step"], finished=False, stopped=engine["stop"], folder=folder,
        make_problem=make_problem,
    )  # fmt: skip


def read_history(folder: Path) -> History:
    """Return the records of a folder's metrics.jsonl."""
    return History(records(folder / "metrics.jsonl"))
