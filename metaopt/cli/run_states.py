"""How far a run is and what it has measured, as far as its folder says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.files.lock import holder
from metaopt.files.numbers import is_number
from metaopt.report.collect import failure
from metaopt.runs import checkpoint
from metaopt.runs.continuing import steps_taken
from metaopt.runs.status import Status
from metaopt.runs.stopping import read_stop, stop_of

TAIL = 2**18
"""Bytes at the end of a metrics.jsonl that are read of a run that is not over."""


class State(NamedTuple):
    """The state of a run.

    Args:
        status: in one word.
        step: the outer step of its end, of the last record of one that is running, of the
            checkpoint that any other continues from.
        steps: outer steps in all.
        note: why it stopped or failed, who runs it; may be empty.
    """

    status: Status
    step: int
    steps: int
    note: str = ""


def state_of(
    folder: Path, config: Mapping[str, Any], result: Mapping[str, Any] | None, whole: bool = True
) -> State:
    """Return the state of a run.

    Args:
        folder: the run's.
        config: its config.
        result: what its result.json holds, or `None`.
        whole: whether checkpoints are read to their end, see `newest_readable`.
    """
    steps = config["outer_steps"]
    if result is not None:
        stop = stop_of(result)
        return State("finished", result.get("outer_steps", steps), steps, str(stop or ""))
    if who := holder(folder):
        return State("running", int(last_record(folder).get("outer_step", 0)), steps, f"by {who}")
    done = steps_taken(folder, config, whole)
    later = [path for n, path in checkpoint.files(folder / "checkpoints") if n > done]
    damaged = f"{later[-1].name} is damaged, or another run's" if later else ""
    if why := failure(folder):
        return State("failed", done, steps, why.removeprefix("failed").removeprefix(": "))
    stop = read_stop(folder)
    if stop is None:
        return State("killed", done, steps, damaged)
    if stop.by == "search":
        return State("pruned", done, steps, damaged)
    return State("interrupted", done, steps, "; ".join(filter(None, [stop.text, damaged])))


def measured(folder: Path, state: State, result: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the metrics of a result, of a run that goes on the last of its log, else none.

    The log of a run that was stopped is verified when it is resumed, and may be damaged before.
    """
    if result is not None:
        return result.get("metrics") or {}
    return last_record(folder) if state.status == "running" else {}


def last_record(folder: Path) -> dict[str, Any]:
    """Return the last values that a run has logged; evaluated ones stay until there are others."""
    values: dict[str, Any] = {}
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return values
    for line in lines:
        try:
            record = json.loads(line)
            values.update({k: v for k, v in record.items() if v is None or is_number(v)})
        except (
            ValueError,
            AttributeError,
            RecursionError,
        ):  # cut by the seek, by a kill, or being written
            continue
    return values
