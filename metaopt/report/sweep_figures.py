"""The figures of a report: learning curves by method, and the table as dots with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metaopt.report.figures import (
    Array,
    Curve,
    binned,
    fit_scale,
    inner_axis,
    line,
    new_figure,
    outer_axis,
    read_curves,
)
from metaopt.report.stats import t_intervals
from metaopt.report.tables import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bands = Mapping[str, "Band"]


class Band:
    """A method's curve over its seeds: the mean and the ends of its t-interval at every step."""

    def __init__(
        self, curves: Sequence[Curve], factor: float, level: float, resplit: float
    ) -> None:
        outer = np.unique(np.concatenate([c.outer for c in curves]))
        table = np.full((len(curves), len(outer)), np.nan)
        inner = np.full(len(outer), np.nan)
        for at, curve in enumerate(curves):
            where = np.searchsorted(outer, curve.outer)
            table[at, where] = curve.value * factor
            inner[where] = curve.inner
        mean, low, high = t_intervals(table, level, resplit)
        self.mean = binned(Curve(outer, inner, mean))
        self.low = binned(Curve(outer, inner, low)).value
        self.high = binned(Curve(outer, inner, high)).value

    @property
    def rate(self) -> float:
        """Inner steps per outer step, NaN where the log does not count them."""
        last = self.mean.outer[-1]
        return float(self.mean.inner[-1] / last) if last > 0 else math.nan


def learning_curves(summary: Summary, path: Path) -> Path | None:
    """Draw every metric of the table, and the outer loss, along the runs; one line per method.

    The band is the t-interval of the mean over seeds. Where all methods take as many inner
    steps per outer step, the inner steps are a second axis; where they differ, a second line of
    panels.

    Returns:
        The figure's path, or `None` when no run logged any of the metrics.
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
    if not drawn:
        return None
    rates = [b.rate for bands in drawn.values() for b in bands.values()]
    known = [rate for rate in rates if math.isfinite(rate)]
    apart = bool(known) and max(known) > 1.01 * min(known)
    return _curves_figure(summary, drawn, apart, path)


def _bands(summary: Summary, logs: Mapping[str, list[dict[str, Curve]]], name: str) -> Bands:
    factor = summary.settings.factor(name)
    bands = {}
    for method, runs in logs.items():
        if curves := [log[name] for log in runs if name in log]:
            bands[method] = Band(curves, factor, summary.level, summary.runs.resplit)
    return bands


def _curves_figure(summary: Summary, drawn: Mapping[str, Bands], apart: bool, path: Path) -> Path:
    many = len(drawn)
    columns = many if apart or many <= 3 else 3
    lines = 2 if apart else math.ceil(many / columns)
    width = max(3.8 * columns, 5.0)
    names = summary.methods
    across = max(1, min(len(names), int(width / (0.55 + 0.085 * max(map(len, names))))))
    height = 3.0 * lines + 0.3 + 0.2 * math.ceil(len(names) / across)
    with new_figure(path, width, height) as figure:
        for at, (name, bands) in enumerate(drawn.items()):
            axes = figure.add_subplot(lines, columns, at + 1)
            _draw(axes, summary, name, bands)
            if apart:
                below = figure.add_subplot(lines, columns, columns + at + 1)
                _draw(below, summary, name, bands, by_inner=True)
            else:
                longest = max(bands.values(), key=lambda b: b.mean.outer[-1]).mean
                inner_axis(axes, longest.outer, longest.inner)
        shown = {
            name: at for at, name in enumerate(names) if any(name in b for b in drawn.values())
        }
        keys = [
            figure.axes[0].plot([], [], label=name, **line(at))[0] for name, at in shown.items()
        ]
        if len(keys) > 1:
            figure.legend(handles=keys, loc="outside lower center", ncols=across)
    return path


def _draw(axes: Axes, summary: Summary, name: str, bands: Bands, by_inner: bool = False) -> None:
    last = 0.0
    for method, band in bands.items():
        x: Array = band.mean.inner if by_inner else band.mean.outer
        if not np.isfinite(x).any():
            continue
        style = line(summary.methods.index(method))
        marker = "o" if len(x) == 1 else None
        axes.plot(x, band.mean.value, marker=marker, markersize=4, **style)
        axes.fill_between(x, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0)
        last = max(last, float(np.nanmax(x)))
    axes.set_title(summary.settings.label(name))
    fit_scale(axes, np.concatenate([band.mean.value for band in bands.values()]))
    outer_axis(axes, last, "inner steps" if by_inner else "outer steps")


def dots(summary: Summary, path: Path) -> Path:
    """Draw the table: a panel per metric, a line per method, a dot with its interval, each seed."""
    methods, metrics = summary.methods, summary.settings.metrics
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
    for at, method in enumerate(summary.methods):
        seeds = list(summary.values(method, metric).values())
        colour = line(at)["color"]
        axes.plot(seeds, [at] * len(seeds), "|", color=colour, alpha=0.45, markersize=7)
        mean, low, high = summary.estimate(method, metric)
        axes.plot([low, high], [at, at], color=colour, linewidth=2)
        axes.plot([mean], [at], "o", color=colour, markersize=5.5)
    axes.set_ylim(len(summary.methods) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(summary.settings.label(metric))
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)
