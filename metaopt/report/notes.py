"""The lines under a table: what ran, on what, and what is missing."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.report.collect import Cell
from metaopt.report.tables import Summary
from metaopt.runs.configs import IRRELEVANT
from metaopt.runs.stopping import By, ended_by, stop_of

_SWEPT = ("experiment", "method", "seed", "label")
"""Keys that a sweep varies."""


def notes(summary: Summary) -> list[str]:
    """Return what a reader needs to trust and to repeat the table, one fact per line."""
    settings, cells = summary.settings, summary.runs.first_replicates
    lines = [_seeds(summary), *_replicates(summary), _intervals(summary)]
    if settings.baseline is not None:
        lines.append(_wins(summary))
    lines += [f"{settings.label(m)}: shown times {settings.factor(m):g}." for m in _scaled(summary)]
    lines += [line for m in summary.methods for line in _ended_early(summary, m)]
    lines += [line for m in summary.methods for line in _mixed(summary, m)]
    if any(len(_measured(summary, m)) < len(settings.metrics) for m in summary.methods):
        lines.append("–: the method's runs do not measure it.")
    for name in ("hardware", "versions", "commit"):
        lines.append(_counted(name.capitalize(), (flat(c.result.get(name)) for c in cells)))
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
    methods: dict[str, list[str]] = {}
    for method in summary.methods:
        seeds = ranges(c.seed for c in summary.runs.of(method))
        methods.setdefault(seeds, []).append(method)
    if len(methods) == 1:
        return f"Seeds: {next(iter(methods))} for every method."
    return "Seeds: " + "; ".join(f"{s} ({', '.join(names)})" for s, names in methods.items())


def _replicates(summary: Summary) -> list[str]:
    if len(summary.runs.cells) == len(summary.runs.first_replicates):
        return []
    return [
        "Replicates: a run trains several seeds as one batch; seconds are those of the run, and so "
        "are other costs unless the run was started with seeds=, where they are those of each seed."
    ]


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
    if all(len(summary.runs.of(method)) == 1 for method in summary.methods):
        return "Intervals: none, there is one seed per method."
    percent = f"{100 * summary.level:g} %"
    student = f"± is half the {percent} interval of the mean over seeds by Student's t"
    if summary.runs.resplit:
        student += (
            ", widened for seeds that are splits of one data set by Nadeau and Bengio's factor "
            f"sqrt(1 + {summary.runs.resplit:.3g} n), and so is Student's p; tests that take the "
            "splits to be independent are not shown"
        )
    if "iqm" in summary.settings.columns:
        student += (
            f"; IQM is the interquartile mean over seeds with its {percent} percentile bootstrap "
            "(Agarwal et al., 2021)"
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
    improvement = (
        f"; P(better) is the probability that a run of the method is better than one of the other, "
        f"with its {100 * summary.level:g} % percentile bootstrap (Agarwal et al., 2021)"
        if "improvement" in settings.columns
        else ""
    )
    return (
        "Paired differences: method minus the one it is compared with, on the seeds that both "
        f"have; better means {', '.join(ways)}; p values are two-sided "
        "and corrected for the number of rows by Holm's method, each column by itself"
        f"{improvement}."
    )


def _scaled(summary: Summary) -> list[str]:
    return [m for m in summary.settings.metrics if summary.settings.factor(m) != 1]


def _counted(what: str, values: Iterable[str]) -> str:
    counted = Counter(values)
    if len(counted) == 1:
        return f"{what}: {next(iter(counted))}"
    listed = "; ".join(f"{value} ({n} runs)" for value, n in counted.most_common())
    return f"{what}, mixed: {listed}"


def flat(value: Any) -> str:
    """Return a value of a result.json on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {flat(v)}" for k, v in value.items() if v != [])
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return str(value) if value else "unknown"


def missing(summary: Summary, root: Path) -> list[str]:
    """Return what the table lacks: unfinished runs, absent methods and seeds, spent limits."""
    runs, settings = summary.runs, summary.settings
    lines = [f"{_short(path, root)}: {why}" for path, why in runs.incomplete]
    for method in dict.fromkeys([*settings.methods, *settings.baselines]):
        if method not in runs.methods:
            lines.append(f"method {method}: no finished run")
    unmeasured = [m for m in settings.metrics if m not in runs.metric_names]
    lines += [f"metric {name}: measured by no finished run" for name in unmeasured]
    batched = {c.method for c in runs.cells if c.replicate}
    for method in summary.methods:
        # A replicate's seed is not a seed of a run: a single run next to batches has not missed it.
        alike = [c for c in runs.cells if (c.method in batched) == (method in batched)]
        absent = {c.seed for c in alike} - {c.seed for c in runs.of(method)}
        if absent:
            lines.append(f"method {method}: no finished run with seed {ranges(absent)}")
        lines += _absent_metrics(summary, method, root)
    return lines


def _ended_early(summary: Summary, method: str) -> list[str]:
    """Say how many runs of a method ended by design, and when: methods compared at equal cost do.

    A metric no longer improved, or a limit of the budget ended all of them.
    """
    runs = [c.result for c in summary.runs.of(method) if c.replicate == 0]
    by: By = "limit" if _limited(summary, method) else "early_stopping"
    ends = sorted(r["outer_steps"] for r in runs if ended_by(r, by))
    if not ends:
        return []
    when = str(ends[0]) if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}"
    what = "A limit of the budget" if by == "limit" else "Early stopping"
    return [f"{what} ended {len(ends)} of {len(runs)} runs of {method}, after {when} outer steps."]


def _mixed(summary: Summary, method: str) -> list[str]:
    """Say where the runs of a method have different configs, as one label may stand for several.

    By the keys that were given for some of them, which unlike those that follow the seed are meant
    to be the same, and by the outer steps, which an extended run has more of.
    """
    runs = [c for c in summary.runs.of(method) if c.replicate == 0]
    keys = dict.fromkeys(["outer_steps", *(key for c in runs for key in c.overrides)])
    seeds: dict[str, list[int]] = {}
    values = {key: [_value(c.config, key) for c in runs] for key in keys if key not in IRRELEVANT}
    different = {key: each for key, each in values.items() if len(set(each)) > 1}
    for at, cell in enumerate(runs):
        text = ", ".join(f"{key}={each[at]}" for key, each in different.items())
        seeds.setdefault(text, []).append(cell.seed)
    if not different:
        return []
    parts = [f"{text} (seed{'s' * (len(each) > 1)} {ranges(each)})" for text, each in seeds.items()]
    return [f"Mixed: the runs of {method} have different configs: {'; '.join(parts)}."]


def _value(config: Mapping[str, Any], key: str) -> str:
    """Return the value at a dotted key of a config; of a part its class, "" where there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping):
        node = node.get("_target_")
    return "" if node is None else str(node)


def _limited(summary: Summary, method: str) -> bool:
    """Return whether the method has several runs, and a limit of the budget ended each."""
    runs = [c.result for c in summary.runs.of(method) if c.replicate == 0]
    return len(runs) > 1 and all(ended_by(result, "limit") for result in runs)


def _absent_metrics(summary: Summary, method: str, root: Path) -> Sequence[str]:
    lines = []
    cells = summary.runs.of(method)
    for run in (c for c in cells if c.replicate == 0):
        at = _short(run.folder, root)
        replicates = [c for c in cells if c.folder == run.folder]
        for metric in _measured(summary, method):
            if metric not in run.metrics:
                lines.append(f"{at}: has no {metric}")
                continue
            values = [c.metrics[metric] for c in replicates if metric in c.metrics]
            if bad := sum(not math.isfinite(value) for value in values):
                which = f" in {bad} of {len(values)} replicates" if len(values) > 1 else ""
                lines.append(f"{at}: {metric} is not finite{which} and is left out of the mean")
        stop = stop_of(run.result)
        by_design = stop and (stop.by == "early_stopping" or _limited(summary, method))
        if stop and not by_design:
            lines.append(f"{at}: stopped early, {stop}")
    return lines


def _measured(summary: Summary, method: str) -> list[str]:
    """Return the metrics that at least one run of the method has."""
    cells = summary.runs.of(method)
    return [m for m in summary.settings.metrics if any(m in c.metrics for c in cells)]


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else str(path)
