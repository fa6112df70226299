"""The figure of a run: coverage, redundancy and the number of metrics of each set tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.report.figures import line, new_figure, outer_axis

NAMES = {"induction": "induction", "held_out": "held out"}


def draw_history(history: Sequence[Mapping[str, Any]], measured_on: str, path: Path) -> None:
    """Write the figure.

    Args:
        history: as the inner state of `MetricInduction` has it, at least one entry.
        measured_on: part that sets are chosen on.
        path: of the figure.
    """
    steps = range(1, len(history) + 1)
    with new_figure(path, 6.4, 5.2) as figure:
        shares, count = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        curves = [
            (part, what)
            for part in dict.fromkeys(("induction", measured_on))
            for what in ("coverage", "redundancy")
        ]
        for index, (part, what) in enumerate(curves):
            values = [entry[f"{part}/{what}"] for entry in history]
            label = f"{what}, {NAMES[part]}"
            shares.plot(steps, values, marker="o", markersize=3, label=label, **line(index))
        shares.set_title("Coverage and redundancy of each set tried")
        shares.set_ylabel("share")
        shares.set_ylim(-0.05, 1.05)
        shares.legend(loc="upper left", bbox_to_anchor=(1, 1.02))
        sizes = [entry["set/metrics"] for entry in history]
        count.plot(steps, sizes, marker="o", markersize=3, **line(0))
        count.set_ylabel("metrics")
        count.set_ylim(bottom=0)
        outer_axis(count, len(history), "outer step")
