"""What `metaopt-profile` prints of a profile, and what it writes."""

from __future__ import annotations

import dataclasses
import resource
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaopt.report.table import Table
from metaopt.testing.profile import Part, Profile

LEGEND = (
    "Each part is without others inside it. calls, ms, CPU ms: of an outer step; evaluation and "
    "checkpoint by eval_every={eval_every} and checkpoint_every={checkpoint_every}. hypergradient, "
    "estimator: the rest of the estimator's call. checks: before outer steps 2, 3, 5, 9, 17 and so "
    "on of {outer_steps}. peak MiB: {peak}."
)

ALIVE = "tensors made in the step, or the call, and alive at once while the part ran"
ALLOCATED = "allocated by torch on the GPU while the part ran, with parameters and data"

MIB = 2**20


@dataclass
class Once:
    """A part that is done once.

    Args:
        name: of the part.
        seconds, cpu_seconds: of wall-clock time, and of all threads of the process.
        resident_bytes: how far it raised the process's peak of resident memory; `None` where it
            was not looked at.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    resident_bytes: int | None = None


def peak_resident() -> int:
    """Return the most memory that the process has had resident, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def show(once: Sequence[Once], costs: Profile, config: Mapping[str, Any]) -> None:
    """Print the tables and what is below them."""
    rows = [[o.name, _ms(o.seconds), _ms(o.cpu_seconds), _mib(o.resident_bytes)] for o in once]
    print(Table(["once", "ms", "CPU ms", "resident MiB +"], rows).text(), end="\n\n")
    whole = Part(
        "outer step", 1, costs.seconds, sum(part.cpu_seconds for part in costs.parts),
        max((part.peak_bytes for part in costs.parts if part.peak_bytes is not None), default=None),
    )  # fmt: skip
    rows = [_row(part, costs.seconds) for part in (*costs.parts, whole)]
    heading = ["part", "calls", "ms", "CPU ms", "share", "peak MiB"]
    print(Table(heading, rows).text(), end="\n\n")
    peak = ALLOCATED if config["device"].startswith("cuda") else ALIVE
    lines = [LEGEND.format(**config, peak=peak)]
    if costs.stopped:
        lines.append(
            f"The run was stopped after {costs.steps} of the outer steps: {costs.stopped}."
        )
    for line in (*lines, largest(costs)):
        print(textwrap.fill(line, 80))


def largest(costs: Profile) -> str:
    """Return a sentence about the part that takes most of the time."""
    part = max(costs.parts, key=lambda part: part.seconds)
    calls = f"{part.calls:.4g} call{'' if part.calls == 1 else 's'}"
    each = f"{calls} of {_ms(part.seconds / part.calls)} ms"
    return (
        f"Largest: {part.name}, {part.seconds / costs.seconds:.0%} of the {_ms(costs.seconds)} ms "
        f"of an outer step: {each}."
    )


def _row(part: Part, seconds: float) -> list[str]:
    return [
        part.name, f"{part.calls:.4g}", _ms(part.seconds), _ms(part.cpu_seconds),
        f"{part.seconds / seconds:.1%}", _mib(part.peak_bytes),
    ]  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / MIB:,.3f}"


def numbers(once: Sequence[Once], costs: Profile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all numbers, in seconds and bytes."""
    return {
        "once": [dataclasses.asdict(part) for part in once],
        "parts": [dataclasses.asdict(part) for part in costs.parts],
        "seconds_per_outer_step": costs.seconds,
        "steps": costs.steps,
        "stopped": costs.stopped,
        "checkpoint_bytes": costs.checkpoint_bytes,
        "peak_resident_bytes": peak_resident(),
        **{key: config[key] for key in ("device", "threads", "eval_every", "checkpoint_every")},
    }
