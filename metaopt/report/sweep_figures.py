"""The figures of a report: learning curves by method, and the table as dots with intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metaopt.report.figures import (
    MOST_PANELS,
    Array,
    Curve,
    binned,
    fit_scale,
    inner_axis,
    line,
    log_floor,
    new_figure,
    numbered,
    outer_axis,
    read_curves,
)
from metaopt.report.ranges import Range
from metaopt.report.stats import t_intervals
from metaopt.report.tables import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bands = Mapping[str, "Band"]
Logs = Mapping[str, list[dict[str, Curve]]]


class Band:
    """A method's curve over its seeds: the mean and the ends of its t-interval at every step.

    It has the steps at which all seeds have a value, so that the mean never jumps because a seed
    was stopped early or evaluated less often; all steps where there is no common one.

    Args:
        curves: one per seed.
        factor: of the numbers shown.
        level: coverage, in (0, 1).
        resplit: see `metaopt.report.stats.t_interval`.
        within: range that the interval is limited to, scaled.
    """

    def __init__(
        self, curves: Sequence[Curve], factor: float, level: float, resplit: float, within: Range
    ) -> None:
        steps, counts = np.unique(np.concatenate([c.outer for c in curves]), return_counts=True)
        common = counts == len(curves)
        outer = steps[common] if common.any() else steps
        table = np.full((len(curves), len(outer)), np.nan)
        inner = np.full(len(outer), np.nan)
        for at, curve in enumerate(curves):
            drawn = np.isin(curve.outer, outer)
            where = np.searchsorted(outer, curve.outer[drawn])
            table[at, where] = curve.value[drawn] * factor
            inner[where] = curve.inner[drawn]
        mean, low, high = t_intervals(table, level, resplit)
        self.mean = binned(Curve(outer, inner, mean))
        self.low = binned(Curve(outer, inner, np.maximum(low, within[0]))).value
        self.high = binned(Curve(outer, inner, np.minimum(high, within[1]))).value

    @property
    def log_low(self) -> Array:
        """Lower end on a logarithmic axis: by ratio as far below the mean as the upper end above.

        mean^2 / high is mean - h up to terms of second order in the half width h, and positive. A
        lower end at or below 0, which no such axis has, would be drawn as an upright line.
        """
        return self.mean.value**2 / self.high

    @property
    def rate(self) -> float:
        """Inner steps per outer step, NaN where the log does not count them."""
        last = self.mean.outer[-1]
        return float(self.mean.inner[-1] / last) if last > 0 else math.nan


def learning_curves(summary: Summary, folder: Path) -> list[Path]:
    """Draw every metric of the table, and the outer loss, along the runs: a figure per metric.

    A method is a line, and its band the t-interval of the mean over seeds, limited to the metric's
    range; on a logarithmic axis it is symmetric there, see `Band.log_low`. Where all methods take
    as many inner steps per outer step, the inner steps are a second axis; where they differ, a
    second panel.

    Returns:
        The figures' paths in `folder`; none when no run logged any of the metrics.
    """
    names = dict.fromkeys([*summary.settings.metrics, "outer/loss"])
    logs = {
        method: [
            read_curves(c.folder / "metrics.jsonl", names, c.replicate)
            for c in summary.runs.of(method)
        ]
        for method in summary.methods
    }
    drawn = {name: bands for name in names if (bands := _bands(summary, logs, name))}
    rates = [b.rate for bands in drawn.values() for b in bands.values()]
    known = [rate for rate in rates if math.isfinite(rate)]
    apart = bool(known) and max(known) > 1.01 * min(known)
    paths: list[Path] = []
    for name, bands in drawn.items():
        path = folder / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', name)}.png"
        if path in paths:
            path = path.with_stem(f"{path.stem}_{len(paths)}")
        paths.append(_curves_figure(summary, name, bands, apart, path))
    return paths


def _bands(summary: Summary, logs: Logs, name: str) -> Bands:
    curves = {
        method: found
        for method, runs in logs.items()
        if (found := [log[name] for log in runs if name in log])
    }
    values = [value for each in curves.values() for curve in each for value in curve.value]
    factor, within = summary.settings.factor(name), summary.within(name, values)
    return {
        method: Band(each, factor, summary.level, summary.runs.resplit, within)
        for method, each in curves.items()
    }


def _curves_figure(summary: Summary, name: str, bands: Bands, apart: bool, path: Path) -> Path:
    across = max(1, min(len(bands), int(3.8 / (0.55 + 0.085 * max(map(len, bands))))))
    key = 0.2 * math.ceil(len(bands) / across) if len(bands) > 1 else 0.0
    with new_figure(path, 3.8, 2.9 * (1 + apart) + key) as figure:
        axes = figure.add_subplot(1 + apart, 1, 1)
        _draw(axes, summary, name, bands)
        if apart:
            _draw(figure.add_subplot(2, 1, 2), summary, name, bands, by_inner=True)
        else:
            longest = max(bands.values(), key=lambda b: b.mean.outer[-1]).mean
            inner_axis(axes, longest.outer, longest.inner)
        keys = [
            axes.plot([], [], label=method, **line(summary.methods.index(method)))[0]
            for method in bands
        ]
        if len(keys) > 1:
            figure.legend(handles=keys, loc="outside lower center", ncols=across)
    return path


def _draw(axes: Axes, summary: Summary, name: str, bands: Bands, by_inner: bool = False) -> None:
    last = 0.0
    means = np.concatenate([band.mean.value for band in bands.values()])
    # Of positive means alone: log_low divides by what is above them.
    lows = np.concatenate([b.log_low for b in bands.values()]) if means.min() > 0 else None
    floor = log_floor(means, lows)
    for method, band in bands.items():
        x: Array = band.mean.inner if by_inner else band.mean.outer
        if not np.isfinite(x).any():
            continue
        style = line(summary.methods.index(method))
        marker = "o" if len(x) == 1 else None
        axes.plot(x, band.mean.value, marker=marker, markersize=4, **style)
        low = np.maximum(band.log_low, floor) if floor > 0 else band.low
        axes.fill_between(x, low, band.high, color=style["color"], alpha=0.15, linewidth=0)
        last = max(last, float(np.nanmax(x)))
    axes.set_title(summary.settings.label(name))
    fit_scale(axes, floor)
    outer_axis(axes, last, "inner steps" if by_inner else "outer steps")


def dots(summary: Summary, path: Path) -> list[Path]:
    """Draw the table: a panel per metric, a line per method, a dot with its interval, each seed.

    Returns:
        The figures' paths: `path` and, where there are more than `MOST_PANELS` metrics, others.
    """
    metrics = summary.settings.metrics
    parts = [metrics[at : at + MOST_PANELS] for at in range(0, len(metrics), MOST_PANELS)]
    return [_dots(summary, part, numbered(path, at)) for at, part in enumerate(parts)]


def _dots(summary: Summary, metrics: Sequence[str], path: Path) -> Path:
    methods = summary.methods
    columns = min(len(metrics), 3)
    lines = math.ceil(len(metrics) / columns)
    names = 0.075 * max(map(len, methods))
    size = names + 3.2 * columns, lines * (0.9 + 0.32 * len(methods))
    with new_figure(path, *size) as figure:
        for at, metric in enumerate(metrics):
            axes = figure.add_subplot(lines, columns, at + 1)
            _dots_panel(axes, summary, metric)
            axes.set_yticks(
                range(len(methods)), methods if at % columns == 0 else [""] * len(methods)
            )
    return path


def _dots_panel(axes: Axes, summary: Summary, metric: str) -> None:
    if isinstance(summary.settings.baseline, str):
        middle = summary.estimate(summary.settings.baseline, metric).estimate
        axes.axvline(middle, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    least, most = summary.within(metric)
    for at, method in enumerate(summary.methods):
        seeds = list(summary.values(method, metric).values())
        colour = line(at)["color"]
        axes.plot(seeds, [at] * len(seeds), "|", color=colour, alpha=0.45, markersize=7)
        mean, low, high = summary.estimate(method, metric)
        axes.plot([max(low, least), min(high, most)], [at, at], color=colour, linewidth=2)
        axes.plot([mean], [at], "o", color=colour, markersize=5.5)
    axes.set_ylim(len(summary.methods) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(summary.settings.label(metric))
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)
