"""Tables and figures of reward models, compared with a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.protocols import Report, Snapshots, Tree
from metaopt.problems.reward_model.data.policy import at_kl
from metaopt.report.figures import line, new_figure
from metaopt.report.table import Table

if TYPE_CHECKING:
    from metaopt.problems.reward_model.meta_reward_model import MetaRewardModel


class TaskReport(Report):
    """What the task draws and writes of the deployed models."""

    def __init__(self, problem: MetaRewardModel) -> None:
        self.problem = problem

    def snapshot(self, outer: Tree, inner: GradientState) -> dict[str, Any]:
        """Return what the task concluded about the deployed models so far."""
        return dict(inner.state)

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Write the task's figures; return their paths."""
        return self.problem.task.draw(snapshots[-1][1], folder) if snapshots else []

    def deliver(self, outer: Tree, inner: GradientState, snapshots: Snapshots, folder: Path) -> str:
        """Write the task's product and return what it says of the deployed models."""
        return self.problem.task.deliver(self.problem.deployed(outer, inner), folder)


def table(figures: Mapping[str, tuple[Tensor, Tensor | None]]) -> str:
    """Return a table of figures (R,) by name, each next to the baseline's, as text.

    Args:
        figures: (of the models, of the baseline or `None`).
    """
    rows = []
    for name, (values, other) in figures.items():
        row = [name, f"{float(values.double().mean()):.4f}", "", "", ""]
        if other is not None:
            gap = values.double() - other.double()
            row[2:4] = f"{float(other.double().mean()):.4f}", f"{float(gap.mean()):+.4f}"
            row[4] = f"{int((gap > 0).sum())} of {len(gap)}"
        rows.append(row)
    header = ["metric", "this model", "vanilla", "difference", "higher on"]
    columns = 5 if any(other is not None for _, other in figures.values()) else 2
    return Table(header[:columns], [row[:columns] for row in rows]).text()


def draw_frontier(
    curves: Mapping[str, Mapping[str, Tensor]], levels: Sequence[float], path: Path
) -> Path:
    """Draw gold reward against the root of the KL: the mean over runs, and each run.

    Args:
        curves: {"kl": (R, S + 1), "gold": (R, S + 1)} by label.
        levels: nats that are marked.
        path: where the figure goes.
    """
    with new_figure(path, 5.2, 3.6) as figure:
        axes = figure.add_subplot()
        for at, (label, curve) in enumerate(curves.items()):
            style = line(at)
            for kl, gold in zip(curve["kl"], curve["gold"], strict=True):
                order = kl.argsort()
                axes.plot(kl[order].sqrt(), gold[order], color=style["color"], alpha=0.15, lw=0.8)
            reach = float(curve["kl"].amax(-1).amin())
            grid = torch.linspace(0, reach**0.5, 60) * 0.999
            mean = [float(at_kl(curve["kl"], curve["gold"], float(r) ** 2).mean()) for r in grid]
            axes.plot(grid, mean, label=label, **style)
        for nats in levels:
            axes.axvline(nats**0.5, color="#888888", linewidth=0.7, linestyle=(0, (4, 3)))
        axes.set_xlabel("root of the KL from the SFT policy, nats")
        axes.set_ylabel("gold reward")
        axes.legend()
    return path
