"""What a run of domain reweighting hands over: the weights, and whether they are noise."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.protocols import Report, Snapshots, Tree
from metaopt.problems.domain_reweighting.figures import draw_weights
from metaopt.problems.domain_reweighting.task import Delivering, ReweightingTask

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
        return {**self.problem.weight_summary(outer, inner), "inner_step": inner.step}

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Write the weights along the run and the hypergradients at its end."""
        return [draw_weights(self.problem.task.domains, snapshots, folder / "weights.png")]

    def deliver(self, outer: Tree, inner: GradientState, snapshots: Snapshots, folder: Path) -> str:
        """Write weights.csv, and what the task delivers; return what there is to read."""
        problem, task = self.problem, self.problem.task
        summary = problem.weight_summary(outer, inner)
        parts = [weights_table(task, summary, folder)]
        if isinstance(task, Delivering):
            weights = dict(zip(task.domains, summary["weight"].tolist(), strict=True))
            parts.append(task.deliver_models(problem.models(inner), weights, folder))
        return "\n\n".join(filter(None, [*parts, f"figures: {folder / 'figures'}"]))


def weights_table(task: ReweightingTask, summary: Mapping[str, Any], folder: Path) -> str:
    """Write weights.csv and return the weights as a table, the largest first, with a warning."""
    columns = ["weight", *(name for name in ("hypergradient", "z") if name in summary)]
    quality = [] if task.quality is None else ["quality"]
    lines = []
    for k in summary["weight"].argsort(descending=True, stable=True).tolist():
        numbers = [float(summary[name][k]) for name in columns]
        known = [] if task.quality is None else [float(task.quality[k])]
        lines.append((task.domains[k], numbers, known))
    with (folder / "weights.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["domain", *columns, *quality])
        table.writerows([n, *(f"{x:.6g}" for x in (*xs, *q))] for n, xs, q in lines)
    wide = max(len("domain"), *(len(name) for name in task.domains))
    forms = {"weight": "8.3f", "hypergradient": "14.2e", "z": "7.1f", "quality": "8.2g"}
    heads = [*columns, *quality]
    text = ["domain".ljust(wide) + "".join(_head(name, forms[name]) for name in heads)]
    for name, numbers, known in lines:
        cells = zip(heads, (*numbers, *known), strict=True)
        text.append(name.ljust(wide) + "".join(f"{x:{forms[head]}}" for head, x in cells))
    share = 100 * float(summary["effective_share"])
    text.append(f"effective sample size: {share:.0f} % of the rows")
    return "\n".join([*text, *_warning(task, summary)])


def _head(name: str, form: str) -> str:
    return name.rjust(int(form.split(".")[0]))


def _warning(task: ReweightingTask, summary: Mapping[str, Any]) -> list[str]:
    if "z" not in summary:
        return []
    sure = NormalDist().inv_cdf(1 - LEVEL / 2 / len(task.domains))
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
