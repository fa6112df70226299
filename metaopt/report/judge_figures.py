"""Figures of calibrated judges: reliability, and scores by outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaopt.llm.rubric import HIGH, LOW, STEP
from metaopt.metrics.binary import Array, auroc, reliability
from metaopt.metrics.calibration import CalibratedJudge
from metaopt.report.figures import PALETTE, new_figure


class Side(NamedTuple):
    """One judge on held-out rows: NaN where a row has no score."""

    name: str
    judge: CalibratedJudge
    scores: Array
    outcomes: Array


def draw_reliability(sides: Sequence[Side], path: Path) -> Path:
    """Write one column per judge: observed rate against probability, and scores by outcome below.

    Bins have equal mass and the bars are Wilson's 95 % intervals; the axes end where they do.
    """
    bins = [reliability(side.judge.probability(side.scores), side.outcomes) for side in sides]
    drawn = np.concatenate([np.append(binned.high, binned.probability) for binned in bins])
    top = min(1.0, 1.08 * float(drawn.max(initial=0.05)))
    with new_figure(path, 3.6 * len(sides) + 0.4, 5.9) as figure:
        panels = figure.subplots(
            2, len(sides), sharey="row", squeeze=False, height_ratios=(3.6, 1.5)
        )
        for column, (side, binned) in enumerate(zip(sides, bins, strict=True)):
            _reliability(panels[0, column], side, binned, top)
            _histogram(panels[1, column], side)
        panels[0, 0].set_ylabel("observed success rate")
        panels[1, 0].set_ylabel("share of outcome")
        panels[1, 0].set_ylim(bottom=0)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        more = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles + more[0], labels + more[1], loc="outside lower center", ncols=3)
    return path


def _reliability(axes: Any, side: Side, binned: Any, top: float) -> None:
    axes.plot([0, 1], [0, 1], color="0.55", linewidth=1, linestyle="--", label="calibrated")
    reach = np.stack([binned.observed - binned.low, binned.high - binned.observed])
    axes.errorbar(
        binned.probability, binned.observed, np.maximum(reach, 0), color=PALETTE[0], linewidth=1.2,
        elinewidth=1, capsize=2,
    )  # fmt: skip
    share = binned.size / max(binned.size.sum(), 1)
    axes.scatter(
        binned.probability, binned.observed, s=14 + 200 * share, color=PALETTE[0], linewidths=0,
        zorder=3, label="bin, area by its rows",
    )  # fmt: skip
    axes.set(xlim=(-0.03 * top, 1.03 * top), ylim=(-0.03 * top, 1.03 * top))
    axes.set_xlabel("calibrated probability")
    scored = int(np.isfinite(side.scores).sum())
    partial = "" if scored == len(side.scores) else f"\n{scored:,} of {len(side.scores):,} rows"
    axes.set_title(f"{side.name}{partial}", loc="left")
    area = auroc(side.scores, side.outcomes)
    if area is not None:
        axes.set_title(f"AUROC {area:.3f}", loc="right", size=9, weight="normal")


def _histogram(axes: Any, side: Side) -> None:
    low, high = side.judge.score_range or (LOW, HIGH)
    if (low, high) == (LOW, HIGH):  # written scores: a bar for each of the grid
        edges = np.arange(LOW - STEP / 2, HIGH + STEP, STEP)
    else:
        edges = np.linspace(low, high, 41)
        axes.locator_params(axis="x", nbins=5)
    for outcome, name, colour in ((0, "failures", PALETTE[4]), (1, "successes", PALETTE[2])):
        scores = side.scores[(side.outcomes == outcome) & np.isfinite(side.scores)]
        share = np.histogram(scores, edges)[0] / max(len(scores), 1)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(share, edges, color=colour, linewidth=1.4, label=name)
    axes.axvline(side.judge.threshold, color="black", linewidth=1.1, linestyle=":",
                 label="threshold")  # fmt: skip
    axes.set(xlabel="score", xlim=(edges[0], edges[-1]))
