"""Which metrics stand for a run where there is room for few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def stated_metrics(config: Mapping[str, Any]) -> list[str]:
    """Return the metrics that a config names, the most important one first.

    They are its objective, what it keeps its best checkpoint or ends early by, and those of its
    table.
    """
    nodes = [config.get(key) for key in ("keep_best", "early_stopping")]
    compared = [node.get("metric") if isinstance(node, Mapping) else node for node in nodes]
    of_table = (config.get("report") or {}).get("metrics") or []
    names = [config.get("objective"), *compared, *of_table]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def headline(stated: Sequence[str], metrics: Mapping[str, Any]) -> list[str]:
    """Return those that stand for a run with these metrics, the most important one first.

    The stated ones; where it has none of them, those of held-out data, else the outer loss.
    """
    held_out = [name for name in metrics if name.startswith("eval/")]
    choices = ([name for name in names if name in metrics] for names in (stated, held_out))
    return next(filter(None, choices), [name for name in metrics if name == "outer/loss"])
