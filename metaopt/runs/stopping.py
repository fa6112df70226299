"""Why a run ended or stopped before its last outer step: one record, in results and in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metaopt.engine.budget import NAMES
from metaopt.files.writing import write_json

FILE = ".stopped"
"""File of a run's folder that holds what stopped the run, until it goes on."""

EARLY = "early stopping: "
"""How the text of older results begins where a metric no longer improved."""

By = Literal["limit", "problem", "early_stopping", "signal", "search"]


class Stop(NamedTuple):
    """What ended or stopped a run, and why.

    Args:
        by: a "limit" of the budget, the "problem" itself or "early_stopping", which end a run; a
            "signal" or the "search" that prunes it, after which it can go on.
        text: the reason in words.
    """

    by: By
    text: str

    def __str__(self) -> str:
        """Return the reason."""
        return self.text


def limit_reached(unit: str) -> Stop:
    """Return the stop of a run that has spent its limit of a unit.

    Example:
        >>> print(limit_reached("lm_calls"))
        the limit on model calls is reached
    """
    return Stop("limit", f"the limit on {NAMES[unit]} is reached")


def stop_of(result: Mapping[str, Any]) -> Stop | None:
    """Return what `stopped` of a result says; `None` where the run took all its outer steps.

    Older results have a text there: a unit, early stopping's reason, or the problem's.

    Example:
        >>> stop_of({"stopped": "gradients"}).by, stop_of({"stopped": "no prompts left"}).by
        ('limit', 'problem')
    """
    stopped = result.get("stopped")
    if isinstance(stopped, Mapping):
        return Stop(stopped["by"], stopped["text"])
    if not stopped:
        return None
    if stopped in NAMES:
        return limit_reached(stopped)
    by: By = "early_stopping" if stopped.startswith(EARLY) else "problem"
    return Stop(by, stopped.removeprefix(EARLY))


def ended_by(result: Mapping[str, Any], by: By) -> bool:
    """Return whether this is what has ended the run of a result."""
    stop = stop_of(result)
    return stop is not None and stop.by == by


def as_json(stop: Stop | None) -> dict[str, str] | None:
    """Return what `stop_of` reads as `stopped` of a result."""
    return None if stop is None else stop._asdict()


def is_stop(value: Any) -> bool:
    """Return whether `stop_of` understands a value of `stopped`."""
    if isinstance(value, Mapping):
        return all(isinstance(value.get(key), str) for key in Stop._fields)
    return value is None or isinstance(value, str)


def write_stop(folder: Path, stop: Stop) -> None:
    """Leave in a run's folder what stopped it, which tells it from one that was killed."""
    write_json(folder / FILE, stop._asdict())


def read_stop(folder: Path) -> Stop | None:
    """Return what stopped the run of a folder; `None` where nothing is said, as of a killed one.

    Older files hold the text alone.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")[:2000].strip()
    except OSError:
        return None
    try:
        record = json.loads(text)
    except ValueError:
        record = {"by": "search" if text.startswith("pruned") else "signal", "text": text}
    return Stop(record["by"], record["text"]) if text and is_stop(record) and record else None
