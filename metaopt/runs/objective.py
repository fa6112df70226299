"""The metric that a run hands to a sweeper: which names there are, and where one is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from metaopt.engine.budget import UNITS
from metaopt.files.errors import ConfigError, nearest

T = TypeVar("T")


def objectives(metrics: Mapping[str, T], budget: Mapping[str, T]) -> dict[str, T]:
    """Return what `objective` may name: the metrics of a result, and `budget/<unit>`."""
    return {**metrics, **{f"budget/{unit}": amount for unit, amount in budget.items()}}


def refuse_unknown(name: str, known: Iterable[str]) -> None:
    """Raise a `ConfigError` unless an objective is one of the names."""
    names = list(known)
    if name not in names:
        raise ConfigError(
            f"objective={name} is not a metric of this run.{nearest(name, names)} There are "
            f"{', '.join(names)}."
        )


def refuse_early(name: str | None, outer_steps: int, metric_names: Collection[str] | None) -> None:
    """Raise a `ConfigError` for an objective that is known before a run not to be a metric.

    Args:
        name: the objective, or `None`.
        outer_steps: number of outer steps of the run.
        metric_names: see `metaopt.engine.protocols.BilevelProblem`.
    """
    if name is None:
        return
    if outer_steps == 0:
        raise ConfigError(f"objective={name} needs outer_steps >= 1: without a step there is none.")
    group = name.partition("/")[0]
    if group == "time":
        raise ConfigError(f"objective={name}: seconds are not a metric, since no run repeats them.")
    if group == "budget":
        refuse_unknown(name, objectives({}, UNITS))
    if group == "eval" and metric_names is not None:
        refuse_unknown(name, [f"eval/{metric}" for metric in metric_names])
