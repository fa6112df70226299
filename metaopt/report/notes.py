"""The lines under a table: what ran, on what, and what is missing."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.engine.budget import UNITS
from metaopt.report.collect import Cell
from metaopt.report.tables import Summary
from metaopt.report.units import WORDS

_SWEPT = ("experiment", "method", "seed", "row")


def notes(summary: Summary) -> list[str]:
    """Return what a reader needs to trust and to repeat the table, one fact a line."""
    settings, cells = summary.settings, summary.found.runs
    lines = [_seeds(summary), *_replicates(summary), _intervals(summary)]
    if settings.baseline is not None:
        lines.append(_wins(summary))
    lines += [f"{settings.label(m)}: shown times {settings.factor(m):g}." for m in _scaled(summary)]
    if any(len(_measured(summary, row)) < len(settings.metrics) for row in summary.rows):
        lines.append("–: the row's runs do not measure it.")
    lines.append(_told("Hardware", (_flat(c.result.get("hardware")) for c in cells)))
    lines.append(_told("Versions", (_flat(c.result.get("versions")) for c in cells)))
    lines.append(_told("Commit", (str(c.result.get("commit") or "unknown") for c in cells)))
    if any("dirty" in str(c.result.get("commit")) for c in cells):
        lines.append("Dirty: the source tree had changes that are not in the commit.")
    if settings.command is not None:
        given = shlex.join(_given(cells, shlex.split(settings.command)))
        lines.append(f"Runs made by: {settings.command} {given}".rstrip())
    return lines


def _given(cells: Sequence[Cell], command: Sequence[str]) -> list[str]:
    """Return the overrides that all runs share, beyond the command and what a sweep varies."""
    lists = [[str(x) for x in c.result.get("overrides") or []] for c in cells]
    return [
        item
        for item in (lists[0] if lists else [])
        if all(item in others for others in lists)
        and item not in command
        and item.lstrip("+~").partition("=")[0] not in _SWEPT
    ]


def _seeds(summary: Summary) -> str:
    rows: dict[str, list[str]] = {}
    for row in summary.rows:
        rows.setdefault(ranges(c.seed for c in summary.found.row(row)), []).append(row)
    if len(rows) == 1:
        return f"Seeds: {next(iter(rows))} in every row."
    return "Seeds: " + "; ".join(f"{seeds} ({', '.join(names)})" for seeds, names in rows.items())


def _replicates(summary: Summary) -> list[str]:
    together = len(summary.found.cells) - len(summary.found.runs)
    if not together:
        return []
    return ["Replicates: a run trains several seeds side by side; costs are those of the run."]


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers in short: 0-3, 7."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _intervals(summary: Summary) -> str:
    if all(len(summary.found.row(row)) == 1 for row in summary.rows):
        return "Intervals: none, there is one seed a row."
    percent = f"{100 * summary.level:g} %"
    student = f"± is half the {percent} interval of the mean over seeds by Student's t"
    if summary.settings.resplit:
        student += (
            ", widened for seeds that are splits of one data set by Nadeau and Bengio's factor "
            f"sqrt(1 + {summary.settings.resplit:.3g} n), and so is Student's p; Wilcoxon's and "
            "the sign test's take the splits to be independent and are too small"
        )
    if summary.interval == "t":
        return f"Intervals: {student}."
    boot = f"Intervals: [low, high] is the {percent} percentile bootstrap of the mean over seeds"
    return f"{boot}; in paired differences {student}."


def _wins(summary: Summary) -> str:
    settings = summary.settings
    ways = [
        f"{'lower' if settings.lower(m) else 'higher'} {settings.label(m)}"
        for m in settings.metrics
    ]
    return (
        "Paired differences: row minus the one it is held against, on the seeds that both have; "
        f"better means {', '.join(ways)}; p values are two-sided and not corrected."
    )


def _scaled(summary: Summary) -> list[str]:
    return [m for m in summary.settings.metrics if summary.settings.factor(m) != 1]


def _told(what: str, values: Iterable[str]) -> str:
    counted = Counter(values)
    if len(counted) == 1:
        return f"{what}: {next(iter(counted))}"
    listed = "; ".join(f"{value} ({n} runs)" for value, n in counted.most_common())
    return f"{what}, mixed: {listed}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items() if v != [])
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return str(value) if value else "unknown"


def missing(summary: Summary, root: Path) -> list[str]:
    """Return what the table lacks: unfinished runs, rows and seeds that never ran, early stops."""
    found = summary.found
    lines = [f"{_short(path, root)}: {why}" for path, why in found.incomplete]
    named = [*summary.settings.rows, *summary.settings.baselines]
    absent_rows = [row for row in dict.fromkeys(named) if row not in found.labels]
    lines += [f"row {row}: no finished run" for row in absent_rows]
    everywhere = {c.seed for c in found.cells}
    for row in summary.rows:
        absent = everywhere - {c.seed for c in found.row(row)}
        if absent:
            lines.append(f"row {row}: no finished run with seed {ranges(absent)}")
        lines += _absent_metrics(summary, row, root)
    return lines


def _absent_metrics(summary: Summary, row: str, root: Path) -> Sequence[str]:
    lines = []
    measured = _measured(summary, row)
    cells = summary.found.row(row)
    for c in (c for c in cells if c.replicate == 0):
        at = _short(c.folder, root)
        together = [other for other in cells if other.folder == c.folder]
        for metric in measured:
            if metric not in c.metrics:
                lines.append(f"{at}: has no {metric}")
                continue
            held = [x.metrics[metric] for x in together if metric in x.metrics]
            if bad := sum(not math.isfinite(value) for value in held):
                which = f" in {bad} of {len(held)} replicates" if len(held) > 1 else ""
                lines.append(f"{at}: {metric} is not finite{which} and is left out of the mean")
        if c.result.get("stopped"):
            unit = WORDS.get(c.result["stopped"], c.result["stopped"])
            why = f"the limit on {unit} is reached" if c.result["stopped"] in UNITS else unit
            lines.append(f"{at}: stopped early, {why}")
    return lines


def _measured(summary: Summary, row: str) -> list[str]:
    """Return the metrics that at least one run of the row has."""
    cells = summary.found.row(row)
    return [m for m in summary.settings.metrics if any(m in c.metrics for c in cells)]


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else str(path)
