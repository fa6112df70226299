"""What a run of domain reweighting hands over: the weights, and whether they are noise."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.protocols import Report, Snapshots, Tree
from metaopt.problems.domain_reweighting.export import export_rater, export_weights
from metaopt.problems.domain_reweighting.rater import Rater
from metaopt.problems.domain_reweighting.task import Delivering, Identified, ReweightingTask
from metaopt.problems.domain_reweighting.weight_summary import weight_summary
from metaopt.report.figures import line, new_figure, outer_axis
from metaopt.report.table import Table

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting

LEVEL = 0.05
"""Probability of a false alarm: that one of K hypergradients of mean 0 has so large a |z|."""


class WeightReport(Report):
    """The weights and hypergradients by domain along a run, and what the task delivers."""

    def __init__(self, problem: DomainReweighting) -> None:
        self.problem = problem

    def snapshot(self, outer: Tree, inner: GradientState) -> dict[str, Any]:
        """Return weights and hypergradients by domain."""
        return {**weight_summary(self.problem, outer, inner), "inner_step": inner.step}

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Write the weights along the run and the hypergradients at its end."""
        return [draw_weights(self.problem.task.domains, snapshots, folder / "weights.png")]

    def deliver(self, outer: Tree, inner: GradientState, snapshots: Snapshots, folder: Path) -> str:
        """Write weights.csv, weights.parquet where the task is `Identified`, and what it delivers.

        Returns what there is to read.
        """
        problem, task = self.problem, self.problem.task
        summary = weight_summary(problem, outer, inner)
        parts = [weights_table(task, summary, folder)]
        if isinstance(task, Identified):
            parts.append(export_weights(problem, task, outer, inner, folder))
        if isinstance(problem.weights, Rater):
            parts.append(export_rater(problem, outer, folder))
        if isinstance(task, Delivering):
            weights = dict(zip(task.domains, summary["weight"].tolist(), strict=True))
            parts.append(task.deliver_models(problem.models(inner), weights, folder))
        return "\n\n".join(filter(None, [*parts, f"figures: {folder / 'figures'}"]))


def weights_table(task: ReweightingTask, summary: Mapping[str, Any], folder: Path) -> str:
    """Write weights.csv and return the weights as a table, the largest first, with a warning."""
    summary = dict(summary) if task.quality is None else {**summary, "quality": task.quality}
    forms = {"weight": ".3f", "hypergradient": ".2e", "z": ".1f", "quality": ".2g"}
    columns = [name for name in forms if name in summary]
    lines = [
        (task.domains[k], [float(summary[name][k]) for name in columns])
        for k in summary["weight"].argsort(descending=True, stable=True).tolist()
    ]
    with (folder / "weights.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["domain", *columns])
        table.writerows([name, *(f"{x:.6g}" for x in numbers)] for name, numbers in lines)
    rows = [
        [name, *(f"{x:{forms[head]}}" for head, x in zip(columns, numbers, strict=True))]
        for name, numbers in lines
    ]
    text = [Table(["domain", *columns], rows).text()]
    share = 100 * float(summary["effective_share"])
    text.append(f"effective sample size: {share:.0f} % of the rows")
    return "\n".join([*text, *_warning(task, summary)])


def _warning(task: ReweightingTask, summary: Mapping[str, Any]) -> list[str]:
    if "z" not in summary:
        return []
    # Student's: z is divided by an error that few steps have estimated.
    freedom = max(float(summary["count"]) - 1, 1.0)
    sure = float(stdtrit(freedom, 1 - LEVEL / 2 / len(task.domains)))
    unsure = [
        name for name, z in zip(task.domains, summary["z"], strict=True) if abs(float(z)) < sure
    ]
    if len(unsure) == len(task.domains):
        return [
            f"warning: no domain's hypergradient stands out from noise (|z| < {sure:.1f}): these "
            "weights are noise. Raise meta_batch and batch first, then outer_steps."
        ]
    if unsure:
        return [f"hypergradient within noise (|z| < {sure:.1f}): {', '.join(unsure)}"]
    return []


def draw_weights(domains: Sequence[str], snapshots: Snapshots, path: Path) -> Path:
    """Write a figure: the weight of each domain by outer step, and its hypergradient at the end.

    Bars are means over the outer steps with two standard errors, in units of the largest mean;
    a negative one raises the weight.

    Args:
        domains: names.
        snapshots: (outer step, {"weight": (K,), and where there are hypergradients by domain
            "hypergradient": (K,), "z": (K,)}), at least one.
        path: where the figure goes.
    """
    last = snapshots[-1][1]
    order = last["weight"].argsort(descending=True, stable=True).tolist()
    measured = "z" in last
    with new_figure(path, 9.0 if measured else 5.4, 3.6) as figure:
        axes = figure.subplots(1, 1 + measured, squeeze=False)[0]
        steps = np.array([step for step, _ in snapshots], float)
        for style, k in enumerate(order):
            values = [float(snapshot["weight"][k]) for _, snapshot in snapshots]
            marker = "o" if len(steps) <= 25 else None
            axes[0].plot(
                steps, values, label=domains[k], marker=marker, markersize=3, **line(style)
            )
        axes[0].axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
        axes[0].set(title="weight of each domain", ylim=(0, None))
        outer_axis(axes[0], steps[-1])
        if measured:
            _hypergradients(axes[1], domains, order, last)
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center",
            ncols=min(5, len(domains)),
        )  # fmt: skip
    return path


def _hypergradients(
    axes: Any, domains: Sequence[str], order: Sequence[int], last: Mapping[str, Any]
) -> None:
    mean, z = last["hypergradient"].numpy()[order], last["z"].numpy()[order]
    largest = max(np.abs(mean).max(), 1e-300)
    error = np.divide(np.abs(mean), np.abs(z), out=np.zeros_like(mean), where=z != 0)
    places = np.arange(len(order))
    colours = [line(i)["color"] for i in range(len(order))]
    axes.barh(places, mean / largest, xerr=2 * error / largest, color=colours, height=0.7)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set(title="mean hypergradient (2 s.e.)", yticks=places, ylim=(len(order) - 0.4, -0.6))
    axes.set_yticklabels([domains[k] for k in order])
    axes.set_xlabel("down: weight rises  <  0  <  weight falls")
    axes.grid(visible=False, axis="y")
