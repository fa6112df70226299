"""The tables of a report: results, paired differences, cost, figures of papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from metaopt.engine.budget import UNITS
from metaopt.report import stats
from metaopt.report.collect import Cell, Collection
from metaopt.report.ranges import Range, metric_range
from metaopt.report.settings import Settings
from metaopt.report.stats import (
    Interval,
    Paired,
    bootstrap_interval,
    iqm,
    paired,
    probability_of_improvement,
    t_interval,
)
from metaopt.report.table import Table

INTERVALS = ("t", "bootstrap")


@dataclass(frozen=True)
class Summary:
    """The cells and the settings of a report, and how its intervals are made.

    Args:
        runs: the finished runs.
        settings: what is shown.
        interval: "t" or "bootstrap".
        level: coverage, in (0, 1).
    """

    runs: Collection
    settings: Settings
    interval: str = "t"
    level: float = 0.95

    @property
    def methods(self) -> list[str]:
        """The methods with a finished run: first those that the experiment orders."""
        present = self.runs.methods
        ordered = [method for method in self.settings.methods if method in present]
        return ordered + [method for method in present if method not in ordered]

    def values(self, method: str, metric: str) -> dict[int, float]:
        """Return the scaled finite values of a metric by seed."""
        factor = self.settings.factor(metric)
        pairs = ((c.seed, c.metrics.get(metric, math.nan) * factor) for c in self.runs.of(method))
        return {seed: value for seed, value in pairs if math.isfinite(value)}

    def within(self, metric: str, values: Sequence[float] = ()) -> Range:
        """Return the scaled range of a metric, known by its name and by its values.

        Args:
            metric: its name.
            values: others than the final ones, not scaled.
        """
        final = [c.metrics[metric] for c in self.runs.cells if metric in c.metrics]
        stated = self.settings.range_of(metric)
        low, high = stated or metric_range(metric, [*final, *values])
        factor = self.settings.factor(metric)
        return min(low * factor, high * factor), max(low * factor, high * factor)

    def estimate(self, method: str, metric: str) -> Interval:
        """Return the mean over seeds and its interval; NaN where no run has the metric."""
        values = list(self.values(method, metric).values())
        if not values:
            return Interval(math.nan, math.nan, math.nan)
        if self.interval == "bootstrap":
            return bootstrap_interval(values, level=self.level)
        return t_interval(values, self.level, self.runs.resplit)

    def comparison(self, method: str, metric: str) -> Paired | None:
        """Return method - baseline over their common seeds, or `None` where there are none."""
        baseline = self.settings.against(method)
        if baseline is None:
            return None
        values, reference = self.values(method, metric), self.values(baseline, metric)
        seeds = sorted(values.keys() & reference.keys())
        if not seeds:
            return None
        a, b = [values[s] for s in seeds], [reference[s] for s in seeds]
        return paired(a, b, self.level, self.runs.resplit)

    def spread(self, metric: str, of: Interval, symmetric: bool, sign: bool = False) -> str:
        """Return `estimate ± half width`, or `estimate [low, high]` of an asymmetric interval."""
        show = self.settings.show
        if math.isnan(of.low):
            return show(metric, of.estimate, sign)
        if symmetric:
            return f"{show(metric, of.estimate, sign)} ± {show(metric, of.half)}"
        return f"{show(metric, of.estimate)} [{show(metric, of.low)}, {show(metric, of.high)}]"


def results(summary: Summary) -> Table:
    """Return mean ± interval of every metric; where asked for, with further columns."""
    settings = summary.settings
    header = ["method", "n"]
    for metric in settings.metrics:
        label = settings.label(metric)
        header += [label, f"{label}, IQM"] if "iqm" in settings.columns else [label]
    rows = [
        [
            method,
            str(len(summary.runs.of(method))),
            *(entry for metric in settings.metrics for entry in _entries(summary, method, metric)),
        ]
        for method in summary.methods
    ]
    if "budget" in settings.columns:
        spent = costs(summary)
        header += spent.header[1:]
        rows = [[*row, *cost[1:]] for row, cost in zip(rows, spent.rows, strict=True)]
    return Table(header, rows, settings.title or "Results")


def _entries(summary: Summary, method: str, metric: str) -> list[str]:
    values = list(summary.values(method, metric).values())
    if not values:
        return ["–", "–"] if "iqm" in summary.settings.columns else ["–"]
    mean = summary.spread(metric, summary.estimate(method, metric), summary.interval == "t")
    few = len(values) < len(summary.runs.of(method))
    entries = [f"{mean} (n = {len(values)})" if few else mean]
    if "iqm" in summary.settings.columns:
        middle = bootstrap_interval(values, iqm, summary.level)
        entries.append(summary.spread(metric, middle, symmetric=False))
    return entries


def differences(summary: Summary) -> Table | None:
    """Return each method minus its baseline on the same seeds, or `None` without a baseline."""
    comparisons = [
        (method, metric, comparison)
        for method in summary.methods
        for metric in summary.settings.metrics
        if (comparison := summary.comparison(method, metric)) is not None
    ]
    if not comparisons:
        return None
    tests = {"p (t)": [c.p_t for *_, c in comparisons]}
    if not summary.runs.resplit:  # these two take seeds to be independent
        tests["p (Wilcoxon)"] = [c.p_wilcoxon for *_, c in comparisons]
        tests["p (sign)"] = [c.p_sign for *_, c in comparisons]
    corrected = zip(*(stats.holm(p) for p in tests.values()), strict=True)
    rows = [
        [*_difference(summary, *comparison), *map(_p, p)]
        for comparison, p in zip(comparisons, corrected, strict=True)
    ]
    asked = {"losses": "worse on", "improvement": "P(better)"}
    further = [heading for name, heading in asked.items() if name in summary.settings.columns]
    header = ["method", "against", "metric", "difference", "better on", *further, *tests]
    return Table(header, rows, "Paired differences", words=3)


def _difference(summary: Summary, method: str, metric: str, comparison: Paired) -> list[str]:
    settings = summary.settings
    wins, losses = comparison.wins, comparison.losses
    if settings.lower(metric):
        wins, losses = losses, wins
    further = [f"{losses} of {comparison.n}"] if "losses" in settings.columns else []
    if "improvement" in settings.columns:
        further.append(_improvement(summary, method, metric))
    return [
        method,
        str(settings.against(method)),
        settings.label(metric),
        summary.spread(metric, comparison.difference, symmetric=True, sign=True),
        f"{wins} of {comparison.n}",
        *further,
    ]


def _improvement(summary: Summary, method: str, metric: str) -> str:
    """Return the probability that a run of a method is better than one of its baseline."""
    names = [method, str(summary.settings.against(method))]
    if summary.settings.lower(metric):
        names.reverse()
    a, b = (list(summary.values(name, metric).values()) for name in names)
    p, low, high = probability_of_improvement(a, b, summary.level)
    return f"{p:.2f}" if math.isnan(low) else f"{p:.2f} [{low:.2f}, {high:.2f}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def costs(summary: Summary) -> Table:
    """Return what a run of each method spent on average."""
    units = [unit for unit in UNITS if any(unit in c.cost for c in summary.runs.cells)]
    rows = [[method, *_cost(summary.runs.of(method), units)] for method in summary.methods]
    header = ["method", "outer steps", *(UNITS[unit] for unit in units), "seconds"]
    return Table(header, rows, "Cost of a run (mean)")


def _cost(cells: Sequence[Cell], units: Sequence[str]) -> list[str]:
    steps = fmean(c.result.get("outer_steps", math.nan) for c in cells)
    spent = [fmean(c.cost.get(unit, 0) for c in cells) for unit in units]
    seconds = [c.seconds for c in cells if c.seconds is not None]
    return [*(f"{x:,.0f}" for x in [steps, *spent]), f"{fmean(seconds):,.1f}" if seconds else "–"]


def reported(summary: Summary) -> Table | None:
    """Return the figures of papers that the experiment quotes, or `None` when there are none."""
    rows = [
        [
            str(entry["method"]),
            summary.settings.label(str(entry["metric"])),
            str(entry["value"]),
            str(entry["source"]) + (" [recall]" if entry.get("recall") else ""),
        ]
        for entry in summary.settings.reported
    ]
    title = "Reported by papers, not measured here"
    return Table(["method", "metric", "value", "source"], rows, title, words=4) if rows else None
