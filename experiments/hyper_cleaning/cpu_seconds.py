"""Quality beside cost: gradients and CPU seconds of the runs of a table, and curves over gradients.

Reads the finished runs of an experiment and writes `cpu_seconds.csv` and `cost.png` into the folder
of its table: `python experiments/hyper_cleaning/cpu_seconds.py RUNS TABLE`. Apart from `table.csv`,
whose numbers are the same to the bit when they are recomputed; seconds never are.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from metaopt.report.collect import Cell, collect

mpl.use("Agg")
import matplotlib.pyplot as plt

PRODUCT = 1.5
"""What a Hessian-vector product counts, in gradients."""

QUALITY = {"eval/test_accuracy": "test accuracy, %", "eval/f1": "F1 of kept labels, %"}
CONTROLS = {"clean examples alone": ":", "right labels (oracle)": "--", "all examples": "-."}
HEADER = ("method", "n", "accuracy", "f1", "gradients", "products", "calls", "cpu_s", "cpu_s_min",
          "cpu_s_max")  # fmt: skip


@dataclass
class Curve:
    """Means over seeds at a method's evaluations: oracle calls (N,), quality by metric (N,)."""

    calls: np.ndarray
    quality: Mapping[str, np.ndarray]


def cpu_seconds(cell: Cell) -> float:
    """Return the CPU seconds of a run, of all its threads."""
    seconds = json.loads((cell.folder / "timing.json").read_text()).get("cpu_seconds")
    if seconds is None:
        raise SystemExit(
            f"{cell.folder}/timing.json has no cpu_seconds: the run was resumed from a checkpoint "
            "that has none. Delete the run and compute it again."
        )
    return float(seconds)


def curve(cells: Sequence[Cell]) -> Curve:
    """Return the learning curve of a method over what it has spent."""
    logs = [
        [json.loads(line) for line in (c.folder / "metrics.jsonl").read_text().splitlines()]
        for c in cells
    ]
    points = list(
        zip(*([r for r in log if "eval/test_accuracy" in r] for log in logs), strict=True)
    )
    calls = [r[0].get("budget/gradients", 0) + PRODUCT * r[0].get("budget/hvps", 0) for r in points]
    quality = {
        name: np.array([100 * np.mean([r[name] for r in step]) for step in points])
        for name in QUALITY
        if all(name in r for step in points for r in step)
    }
    return Curve(np.array(calls), quality)


def row(method: str, cells: Sequence[Cell], last: Curve) -> list[object]:
    """Return the line of a method in cpu_seconds.csv."""
    seconds = [cpu_seconds(c) for c in cells]
    spent = [c.result["budget"] for c in cells]
    gradients, products = (np.mean([s.get(u, 0) for s in spent]) for u in ("gradients", "hvps"))
    f1 = f"{last.quality['eval/f1'][-1]:.2f}" if "eval/f1" in last.quality else ""
    return [
        method, len(cells), f"{last.quality['eval/test_accuracy'][-1]:.2f}", f1,
        f"{gradients:.0f}", f"{products:.0f}", f"{gradients + PRODUCT * products:.0f}",
        f"{np.mean(seconds):.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}",
    ]  # fmt: skip


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw both qualities over oracle calls; controls are horizontal lines at where they end."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    learned = [method for method in curves if method not in CONTROLS]
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
    for axis, (name, label) in zip(axes, QUALITY.items(), strict=True):
        for i, method in enumerate(learned):
            points = curves[method]
            axis.plot(
                points.calls, points.quality[name], "o-", ms=4, color=colours[i], label=method
            )
        for method, style in CONTROLS.items():
            if name in curves[method].quality:
                end = curves[method].quality[name][-1]
                axis.axhline(end, color="black", ls=style, lw=1, label=method)
        axis.set(xlim=(0, None), ylabel=label, xlabel="gradients + 1.5 x Hessian-vector products")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def methods(cells: Sequence[Cell]) -> list[str]:
    """Return the methods that have runs, in the order of the table."""
    order: list[str] = cells[0].config["report"]["methods"] if cells else []
    return [method for method in order if any(c.method == method for c in cells)]


def main(runs: Path, table: Path) -> None:
    """Write cpu_seconds.csv and cost.png."""
    cells = collect(runs).cells
    by_method = {method: [c for c in cells if c.method == method] for method in methods(cells)}
    if not set(CONTROLS) <= set(by_method):
        raise SystemExit(f"{runs} lacks finished runs of the controls {', '.join(CONTROLS)}.")
    curves = {method: curve(cells) for method, cells in by_method.items()}
    rows = [row(method, cells, curves[method]) for method, cells in by_method.items()]
    with (table / "cpu_seconds.csv").open("w", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    draw(curves, table / "cost.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(
            "usage: cpu_seconds.py RUNS TABLE: a folder of runs, and the folder of their table."
        )
    main(Path(sys.argv[1]), Path(sys.argv[2]))
