"""Best-of-n by model and by baselines without a model: a table, a file, a figure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from metaopt.metrics.best_of_n import best_of_n, interval, majority_vote, pass_at_n
from metaopt.metrics.bootstrap import MIN_QUERIES
from metaopt.report.figures import line, new_figure
from metaopt.report.table import Table


def compare(
    scores: Mapping[str, Tensor],
    correct: Tensor,
    answers: Sequence[Sequence[str]] | None,
    sizes: Sequence[int],
    folder: Path,
) -> str:
    """Write best_of_n.csv and figures/best_of_n.png into `folder`, and return a table in %.

    Args:
        scores: by model, or by what else ranks candidates, of every candidate, (Q, C).
        correct: which candidates are right, (Q, C).
        answers: final answers, for the majority vote, or `None`.
        sizes: the n.
        folder: of the run.
    """
    right = correct.numpy()
    tables = {name: best_of_n(values.numpy(), right, sizes) for name, values in scores.items()}
    if answers is not None:
        tables["majority vote"] = majority_vote(answers, right, sizes)
    tables["pass@n"] = pass_at_n(right, sizes)
    means = {name: 100 * table.mean(0) for name, table in tables.items()}
    ends = {name: interval(table) for name, table in tables.items()}
    with (folder / "best_of_n.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picked by", "n", "accuracy", "low", "high"])
        for name, mean in means.items():
            for n, value, (low, high) in zip(sizes, mean, ends[name], strict=True):
                bounds = ["" if x is None else f"{100 * x:.4g}" for x in (low, high)]
                table.writerow([name, n, f"{value:.4g}", *bounds])
    _draw(means, sizes, folder / "figures" / "best_of_n.png")
    rows = [[name, *(f"{value:.1f}" for value in mean)] for name, mean in means.items()]
    lines = [Table(["best of n, %", *map(str, sizes)], rows).text()]
    last = ends[next(iter(means))][-1]
    if None in last:
        lines.append(
            f"{_questions(len(right))}: too few for an interval, which takes {MIN_QUERIES}"
        )
    else:
        low, high = (100 * x for x in last if x is not None)
        lines.append(
            f"{_questions(len(right))}; 95 % interval of {next(iter(means))} at n = {sizes[-1]}: "
            f"{low:.1f} to {high:.1f}"
        )
    return "\n".join(lines)


def _questions(count: int) -> str:
    return f"{count} question{'s' * (count != 1)}"


def _draw(means: Mapping[str, np.ndarray], sizes: Sequence[int], path: Path) -> Path:
    with new_figure(path, 5.4, 3.6) as figure:
        axes = figure.subplots()
        for number, (name, mean) in enumerate(means.items()):
            axes.plot(sizes, mean, marker="o", markersize=3.5, label=name, **line(number))
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(sizes), [str(n) for n in sizes])
        axes.set(title="answers picked from n candidates", xlabel="n", ylabel="right, %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return path
