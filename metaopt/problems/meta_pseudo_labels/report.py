"""Decision boundaries of teacher and student over time, on two-dimensional data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.protocols import Report, Snapshots, Tree
from metaopt.nn import Network
from metaopt.problems.meta_pseudo_labels.data import SemiSupervised
from metaopt.problems.meta_pseudo_labels.evaluation import accuracy
from metaopt.report.figures import PALETTE, new_figure

if TYPE_CHECKING:
    from metaopt.problems.meta_pseudo_labels.problem import MetaPseudoLabels

ROWS = ("teacher", "student")


class BoundaryReport(Report):
    """The decision boundaries of teacher and student over time, of planar data of two classes."""

    def __init__(self, problem: MetaPseudoLabels) -> None:
        self.problem = problem

    @torch.no_grad()
    def snapshot(self, outer: Tree, inner: GradientState) -> dict[str, Any]:
        """Return the probabilities of class 1 on a grid."""
        problem = self.problem
        tensors = inner.params | inner.buffers | problem.frozen
        teacher, student = problem.teacher_tensors(outer, tensors), problem.evaluated(inner)
        return {
            "teacher": boundary(problem.teacher, teacher, problem.data),
            "student": boundary(problem.student, student, problem.data),
        }

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Write one figure."""
        path = folder / "decision_boundaries.png"
        return [draw_boundaries(self.problem.data, snapshots, path)]


def grid(data: SemiSupervised, size: int = 100) -> tuple[Tensor, list[float]]:
    """Return points (size * size, 2) that cover the data, and [left, right, bottom, top]."""
    low, high = data.unlabelled.amin(0) - 0.4, data.unlabelled.amax(0) + 0.4
    x, y = (torch.linspace(float(a), float(b), size) for a, b in zip(low, high, strict=True))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([columns, rows], -1).view(-1, 2)
    extent = [float(low[0]), float(high[0]), float(low[1]), float(high[1])]
    return points.to(data.unlabelled), extent


@torch.no_grad()
def boundary(network: Network, tensors: Tree, data: SemiSupervised) -> dict[str, Any]:
    """Return the probability of class 1 on `grid`, (size, size), and the test accuracy in %."""
    points, _ = grid(data)
    p = torch.softmax(network.evaluate(tensors, points), -1)[:, 1]
    size = math.isqrt(len(points))
    tested = float(accuracy(network, tensors, data.test, data.test_labels))
    return {"probability": p.view(size, size).cpu(), "accuracy": tested}


def draw_boundaries(data: SemiSupervised, snapshots: Snapshots, path: Path) -> Path:
    """Write a figure with one row per network and up to five moments as columns.

    Each panel's right title is the accuracy on the test part.

    Args:
        data: two-dimensional examples of two classes.
        snapshots: (outer step, {"teacher": what `boundary` returns, "student": the same}).
        path: where the figure goes.
    """
    chosen = _spread(snapshots, 5)
    _, extent = grid(data, 2)
    with new_figure(path, 1.95 * len(chosen) + 0.5, 4.3) as figure:
        panels = figure.subplots(2, len(chosen), sharex=True, sharey=True, squeeze=False)
        for column, (step, snapshot) in enumerate(chosen):
            for row, name in enumerate(ROWS):
                axes = panels[row, column]
                p = snapshot[name]["probability"].numpy()
                _panel(axes, data, p, extent, (PALETTE[0], PALETTE[1]))
                tested = f"{snapshot[name]['accuracy']:.1f} %"
                axes.set_title(tested, loc="right", pad=3, size=9, weight="normal")
                if row == 0:
                    axes.set_title(f"step {step:,}", loc="left", pad=3)
                if column == 0:
                    axes.set_ylabel(name, weight="bold")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        # In as many columns as the figure has room for: of few moments it is narrow.
        columns = min(4, max(1, len(chosen) - 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return path


def _panel(axes: Any, data: SemiSupervised, p: Any, extent: list[float], colours: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("classes", [colours[0], "white", colours[1]])
    axes.imshow(
        p, extent=extent, origin="lower", cmap=shades, vmin=0, vmax=1, alpha=0.45,
        interpolation="bilinear", aspect="equal",
    )  # fmt: skip
    if p.min() < 0.5 < p.max():
        axes.contour(p, levels=[0.5], extent=extent, colors="black", linewidths=1.3)
    points, classes = data.unlabelled[::4].cpu().numpy(), data.hidden_labels[::4].cpu().numpy()
    labelled, labels = data.labelled.cpu().numpy(), data.labels.cpu().numpy()
    for c in range(2):
        x, y = points[classes == c].T
        axes.scatter(x, y, s=3, color=colours[c], alpha=0.55, linewidths=0)
        x, y = labelled[labels == c].T
        axes.scatter(
            x, y, s=52, color=colours[c], edgecolors="black", linewidths=1.2,
            marker="os"[c], zorder=3, label=f"labelled, class {c}",
        )  # fmt: skip
    axes.plot([], [], color="black", linewidth=1.3, label="decision boundary")
    axes.scatter([], [], s=8, color="0.5", linewidths=0, label="unlabelled (coloured by class)")
    axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    axes.grid(False)


def _spread(snapshots: Snapshots, most: int) -> Snapshots:
    """Return at most `most` snapshots: the first, the last, and others denser at the start."""
    if len(snapshots) <= most:
        return snapshots
    last = len(snapshots) - 1
    wanted = sorted({round(last * (i / (most - 1)) ** 2) for i in range(most)})
    return [snapshots[i] for i in wanted]
