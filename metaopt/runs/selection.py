"""What a run does by an evaluated metric: it ends early, and it keeps its best checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from metaopt.engine import Engine
from metaopt.engine.annotations import describe, fits, hints
from metaopt.engine.ranges import check_ranges
from metaopt.files.errors import ConfigError, nearest
from metaopt.runs.directions import lower_is_better
from metaopt.runs.stopping import Stop

Keys = Mapping[str, Any] | str | None
"""A `Criterion` as a config has it: its keys, or its metric alone."""

T = TypeVar("T", bound="Criterion")


@dataclass(frozen=True)
class Criterion:
    """A metric, and which way it is better.

    Args:
        metric: what is compared at each evaluation, such as `eval/test_loss` or `outer/loss`.
        mode: "min" or "max"; `None` is what the metric's name says, see `lower_is_better`.
    """

    metric: str
    mode: Literal["min", "max"] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "metric")
        group = self.metric.partition("/")[0]
        if group in ("time", "budget"):
            raise ValueError(f"metric={self.metric} says what a run costs, not how good it is.")

    def better(self, value: float, best: float | None, by: float = 0.0) -> bool:
        """Return whether a value is better than the best so far, by more than `by`."""
        falling = lower_is_better(self.metric) if self.mode is None else self.mode == "min"
        return best is None or (best - value if falling else value - best) > by


@dataclass(frozen=True)
class EarlyStopping(Criterion):
    """Ends a run whose metric has stopped to improve (Prechelt, Early Stopping, But When?, 1998).

    Args:
        metric, mode: see `Criterion`.
        patience: evaluations in a row without a better value after which the run ends, >= 1.
        min_delta: how much better than the best so far a value must be to count, >= 0.
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "patience >= 1", "min_delta >= 0")


@dataclass
class Best:
    """The best value so far, the outer step it is of, and how many evaluations came after it."""

    value: float | None = None
    step: int = 0
    since: int = 0


class Selection:
    """Compares what a run evaluates with the best so far.

    Its state is in every checkpoint, so that a run that continues stops where it would have
    stopped. A value that is not finite is never better.

    Args:
        early_stopping: keys of an `EarlyStopping`, or its metric; `None`, or a metric of `None`,
            ends no run.
        keep_best: keys of a `Criterion`, or its metric; `None` likewise keeps the last checkpoints
            alone.

    Raises:
        ConfigError: an unknown key, a value out of range, or a metric of which the better way must
            be said.
    """

    def __init__(self, early_stopping: Keys = None, keep_best: Keys = None) -> None:
        self.early_stopping = _criterion("early_stopping", EarlyStopping, early_stopping)
        self.keep_best = _criterion("keep_best", Criterion, keep_best)
        self._early, self.best = Best(), Best()
        self._said: set[str] = set()

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that are compared, by the key that names them."""
        both = {"early_stopping.metric": self.early_stopping, "keep_best": self.keep_best}
        return {key: by.metric for key, by in both.items() if by is not None}

    @property
    def stopped(self) -> Stop | None:
        """Why the run ends early, or `None` where it goes on."""
        by, best = self.early_stopping, self._early
        if by is None or best.since < by.patience:
            return None
        times = "1 evaluation" if best.since == 1 else f"{best.since} evaluations"
        if best.value is None:
            return Stop("early_stopping", f"{by.metric} was not finite in {times}")
        best_so_far = f"{best.value:.6g} (outer step {best.step})"
        text = f"{by.metric} was not better than {best_so_far} in {times}"
        return Stop("early_stopping", text)

    def refuse_unclear(self, key: str) -> None:
        """Raise a `ConfigError` where it is not said which way the metric of a key is better.

        Called once that is known to be a metric: a misspelt name says nothing, either.
        """
        by = self.keep_best if key == "keep_best" else self.early_stopping
        if by is not None and by.mode is None and lower_is_better(by.metric) is None:
            name = key.partition(".")[0]
            raise ConfigError(
                f"{name}.mode must be min or max: the name {by.metric} does not say which of them "
                f"is better."
            )

    def update(self, step: int, values: Mapping[str, float], scheduled: bool) -> None:
        """Compare what was evaluated after an outer step with the best so far.

        Args:
            step: the outer step.
            values: by metric; one that is not among them, as it has nothing to measure yet, is not
                compared.
            scheduled: whether the step is one of `eval_every`. The one at the end that is not would
                have no part in a longer run, and has none in early stopping.
        """
        early, keep = self.early_stopping, self.keep_best
        if early is not None and early.metric in values and scheduled:
            self._compare(early, self._early, step, values[early.metric], early.min_delta)
        if keep is not None and keep.metric in values:
            self._compare(keep, self.best, step, values[keep.metric])

    def _compare(
        self, by: Criterion, best: Best, step: int, value: float, min_delta: float = 0.0
    ) -> None:
        if not math.isfinite(value) and by.metric not in self._said:
            self._said.add(by.metric)
            print(f"{by.metric} is {value} at outer step {step}: it counts as no better than "
                  f"before.", file=sys.stderr)  # fmt: skip
        if math.isfinite(value) and by.better(value, best.value, min_delta):
            best.value, best.step, best.since = value, step, 0
        else:
            best.since += 1

    def result(self) -> dict[str, Any]:
        """Return what result.json says of the best checkpoint; nothing where none is kept."""
        if self.keep_best is None:
            return {}
        best = {"metric": self.keep_best.metric, "value": self.best.value}
        return {"best": {**best, "outer_step": self.best.step}}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"early_stopping": asdict(self._early), "keep_best": asdict(self.best)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned; checkpoints of older runs have none."""
        if state is None:
            return
        self._early = Best(**state["early_stopping"])
        self.best = Best(**state["keep_best"])

    def check(self, engine: Engine, folder: Path | None, eval_every: int) -> None:
        """Say on the standard error where a run is too short to end early.

        Raises:
            ConfigError: several seeds are trained together, or there is no folder to keep a
                checkpoint in.
        """
        if self.metrics and len(engine.seeds or ()) > 1:
            raise ConfigError(
                f"{' and '.join(self.metrics)}: of seeds that are trained together each would have "
                f"an end and a best checkpoint of its own. Drop it, or run them one by one, with "
                f"-m seed=0,1,2."
            )
        if self.keep_best is not None and folder is None:
            raise ConfigError("keep_best needs a folder; pass folder=<where the run is kept>.")
        by = self.early_stopping
        if by is None or (needed := eval_every * (by.patience + 1)) < engine.outer_steps:
            return
        most = (engine.outer_steps - 1) // eval_every - 1
        patience = f"a patience from 1 to {most}, " if most >= 1 else ""
        print(f"early_stopping.patience={by.patience} cannot end this run early: it needs "
              f"{by.patience + 1} evaluations, which with eval_every={eval_every} is outer step "
              f"{needed} of {engine.outer_steps}. Choose {patience}a smaller eval_every or a "
              f"larger outer_steps.", file=sys.stderr)  # fmt: skip


def as_keys(keys: Keys) -> Mapping[str, Any]:
    """Return the keys of a criterion of which a config has the metric alone, perhaps."""
    return {"metric": keys} if isinstance(keys, str) else (keys or {})


def _criterion(key: str, kind: type[T], keys: Keys) -> T | None:
    """Make a criterion of the keys of a config; messages name them as they are typed."""
    given = as_keys(keys)
    known: Mapping[str, Any] = hints(kind)  # type: ignore[arg-type]  # of a class that is generic
    defaults = {field.name: field.default for field in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"{key} has no key {name!r}.{nearest(name, known)} There are {', '.join(known)}."
            )
        if value is not None and not fits(value, known[name]):
            raise ConfigError(f"{key}.{name} must be {describe(known[name])}; got {value!r}.")
    if given.get("metric") is None:
        if changed := [f"{k}={v}" for k, v in given.items() if v not in (None, defaults[k])]:
            raise ConfigError(
                f"{key} has {', '.join(changed)} and no metric; set {key}.metric, such as "
                f"{key}.metric=eval/test_loss."
            )
        return None
    try:
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
