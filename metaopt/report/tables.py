"""The grids of a report: results, paired differences, cost, figures of papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from metaopt.report.collect import Cell, Collection
from metaopt.report.grid import Grid
from metaopt.report.settings import Settings
from metaopt.report.stats import Interval, Paired, bootstrap_interval, paired, t_interval
from metaopt.report.units import WORDS

INTERVALS = ("t", "bootstrap")


@dataclass(frozen=True)
class Summary:
    """The cells and the settings of a report, and how its intervals are made.

    Args:
        found: the finished runs.
        settings: what is shown.
        interval: "t" or "bootstrap".
        level: coverage, in (0, 1).
    """

    found: Collection
    settings: Settings
    interval: str = "t"
    level: float = 0.95

    @property
    def rows(self) -> list[str]:
        """The rows with a finished run: first those that the experiment orders."""
        present = self.found.labels
        ordered = [row for row in self.settings.rows if row in present]
        return ordered + [row for row in present if row not in ordered]

    def values(self, row: str, metric: str) -> dict[int, float]:
        """Return the scaled finite values of a metric by seed."""
        factor = self.settings.factor(metric)
        pairs = ((c.seed, c.metrics.get(metric, math.nan) * factor) for c in self.found.row(row))
        return {seed: value for seed, value in pairs if math.isfinite(value)}

    def estimate(self, row: str, metric: str) -> Interval:
        """Return the mean over seeds and its interval; NaN where no run has the metric."""
        values = list(self.values(row, metric).values())
        if not values:
            return Interval(math.nan, math.nan, math.nan)
        if self.interval == "bootstrap":
            return bootstrap_interval(values, level=self.level)
        return t_interval(values, self.level, self.settings.resplit)

    def comparison(self, row: str, metric: str) -> Paired | None:
        """Return row - baseline over the seeds that both have, or `None` where there are none."""
        baseline = self.settings.against(row)
        if baseline is None:
            return None
        own, other = self.values(row, metric), self.values(baseline, metric)
        shared = sorted(own.keys() & other.keys())
        return (
            paired(
                [own[s] for s in shared],
                [other[s] for s in shared],
                self.level,
                self.settings.resplit,
            )
            if shared
            else None
        )


def results(summary: Summary) -> Grid:
    """Return mean ± interval of every metric, one line a row."""
    settings = summary.settings
    lines = [
        [
            row,
            str(len(summary.found.row(row))),
            *(_entry(summary, row, m) for m in settings.metrics),
        ]
        for row in summary.rows
    ]
    header = ["row", "n", *(settings.label(m) for m in settings.metrics)]
    return Grid(settings.title or "Results", header, lines)


def _entry(summary: Summary, row: str, metric: str) -> str:
    values = summary.values(row, metric)
    if not values:
        return "–"
    text = spread(summary, metric, summary.estimate(row, metric))
    few = len(values) < len(summary.found.row(row))
    return f"{text} (n = {len(values)})" if few else text


def spread(summary: Summary, metric: str, of: Interval, sign: bool = False) -> str:
    """Return `mean ± half width` for a t-interval, `mean [low, high]` for a bootstrap."""
    show = summary.settings.show
    if math.isnan(of.low):
        return show(metric, of.estimate, sign)
    if summary.interval == "t" or sign:
        return f"{show(metric, of.estimate, sign)} ± {show(metric, of.half)}"
    return f"{show(metric, of.estimate)} [{show(metric, of.low)}, {show(metric, of.high)}]"


def differences(summary: Summary) -> Grid | None:
    """Return each row minus its baseline on the same seeds, or `None` without a baseline."""
    lines = []
    for row in summary.rows:
        for metric in summary.settings.metrics:
            if (found := summary.comparison(row, metric)) is not None:
                lines.append(_difference(summary, row, metric, found))
    header = [
        "row",
        "against",
        "metric",
        "difference",
        "better on",
        "p (t)",
        "p (Wilcoxon)",
        "p (sign)",
    ]
    return Grid("Paired differences", header, lines, names=3) if lines else None


def _difference(summary: Summary, row: str, metric: str, found: Paired) -> list[str]:
    wins = found.losses if summary.settings.lower(metric) else found.wins
    ps = [_p(p) for p in (found.p_t, found.p_wilcoxon, found.p_sign)]
    change = spread(summary, metric, found.difference, sign=True)
    against = str(summary.settings.against(row))
    return [row, against, summary.settings.label(metric), change, f"{wins} of {found.n}", *ps]


def _p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def costs(summary: Summary) -> Grid:
    """Return what a run of each row spent on average."""
    cells = summary.found.cells
    units = [unit for unit in WORDS if any(unit in (c.result.get("budget") or {}) for c in cells)]
    lines = [[row, *_cost(summary.found.row(row), units)] for row in summary.rows]
    header = ["row", "outer steps", *(WORDS[unit] for unit in units), "seconds"]
    return Grid("Cost of a run (mean)", header, lines)


def _cost(cells: Sequence[Cell], units: Sequence[str]) -> list[str]:
    steps = fmean(c.result.get("outer_steps", math.nan) for c in cells)
    spent = [fmean((c.result.get("budget") or {}).get(unit, 0) for c in cells) for unit in units]
    seconds = [c.seconds for c in cells if c.seconds is not None]
    return [*(f"{x:,.0f}" for x in [steps, *spent]), f"{fmean(seconds):,.1f}" if seconds else "–"]


def reported(summary: Summary) -> Grid | None:
    """Return the figures of papers that the experiment quotes, or `None` when there are none."""
    entries = summary.settings.reported
    lines = [
        [
            str(e["row"]),
            summary.settings.label(str(e["metric"])),
            str(e["value"]),
            str(e["source"]) + (" [recall]" if e.get("recall") else ""),
        ]
        for e in entries
    ]
    title = "Reported by papers, not measured here"
    return Grid(title, ["row", "metric", "value", "source"], lines, names=4) if lines else None
