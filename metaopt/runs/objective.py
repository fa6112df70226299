"""Metrics that keys of a config name: which names there are, and where one is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from metaopt.engine import Engine
from metaopt.engine.budget import UNITS
from metaopt.files.errors import ConfigError, nearest

T = TypeVar("T")


def objectives(metrics: Mapping[str, T], budget: Mapping[str, T]) -> dict[str, T]:
    """Return what `objective` may name: the metrics of a result, and `budget/<unit>`."""
    return {**metrics, **{f"budget/{unit}": amount for unit, amount in budget.items()}}


def refuse_unknown(name: str, known: Iterable[str], key: str = "objective") -> None:
    """Raise a `ConfigError` unless the metric that a key names is one of these."""
    names = list(known)
    if name not in names:
        raise ConfigError(
            f"{key}={name} is not a metric of this run.{nearest(name, names)} There are "
            f"{', '.join(names)}."
        )


def refuse_early(
    name: str, outer_steps: int, metric_names: Collection[str] | None, key: str = "objective"
) -> None:
    """Raise a `ConfigError` for what is known before a run not to be a metric.

    Args:
        name: of the metric.
        outer_steps: number of outer steps of the run.
        metric_names: see `metaopt.engine.protocols.BilevelProblem`.
        key: of the config, that names it.
    """
    if outer_steps == 0:
        raise ConfigError(f"{key}={name} needs outer_steps >= 1: without a step there is none.")
    group = name.partition("/")[0]
    if group == "time":
        raise ConfigError(f"{key}={name}: seconds are not a metric, since no run repeats them.")
    if group == "budget":
        refuse_unknown(name, objectives({}, UNITS), key)
    if group == "eval" and metric_names is not None:
        refuse_unknown(name, [f"eval/{metric}" for metric in metric_names], key)


class NamedMetrics:
    """Refuses the keys of a config that name no metric of the run, as soon as that is known.

    Args:
        names: of metrics by key; `None` names none.
        engine: of the run.
        check: what else is asked of a key, once its metric is known to be one.

    Raises:
        ConfigError: a metric is known before the run not to be one.
    """

    def __init__(
        self, names: Mapping[str, str | None], engine: Engine, check: Callable[[str], None]
    ) -> None:
        self.engine, self._check = engine, check
        self._unknown = {key: name for key, name in names.items() if name is not None}
        for key, name in self._unknown.items():
            refuse_early(name, engine.outer_steps, engine.problem.metric_names, key)
            if name.startswith("eval/") and engine.problem.metric_names is not None:
                check(key)

    def check(
        self,
        last: Mapping[str, Any],
        evaluated: Mapping[str, Any],
        spent: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Raise a `ConfigError` where a key names no metric.

        At the first step, unless its name is one of held-out data, to be paid for or not all there
        yet.

        Args:
            last: metrics of the outer step.
            evaluated: those of held-out data; empty where none was due.
            spent: returns the costs by unit, which `objective` may name, too.
        """
        problem, pending = self.engine.problem, dict[str, str]()
        for key, name in self._unknown.items():
            if name.startswith("eval/"):
                if not evaluated and problem.records is None and problem.metric_names is None:
                    evaluated = self.engine.measured()
                if not evaluated or problem.metric_names is not None:
                    pending[key] = name
                    continue
            budget = spent() if key == "objective" else {}
            refuse_unknown(name, objectives({**last, **evaluated}, budget), key)
            self._check(key)
        self._unknown = pending
