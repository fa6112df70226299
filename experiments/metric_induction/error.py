"""Draw metrics, planted behaviours found and redundancy against the readers' error: `error.png`.

Reads `simulated/table.csv`: `python experiments/metric_induction/error.py`, a second.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path

from metaopt.report.figures import line, new_figure
from metaopt.report.stats import t_interval

FOLDER = Path(__file__).parent
AT = ", eps "
PANELS = {
    "eval/metrics": "number of metrics",
    "eval/coverage": "coverage, test part",
    "eval/redundancy": "redundancy, test part",
    "eval/precision": "precision, planted behaviours",
    "eval/recall": "recall, planted behaviours",
    "eval/aspects_rand": "adjusted Rand index, aspects",
}


def main() -> None:
    """Write the figure: a panel for each metric, a line for each method, 95 % intervals."""
    values: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    with (FOLDER / "simulated" / "table.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, _, error = row["method"].partition(AT)
            for metric in PANELS:
                values[name, float(error), metric].append(float(row[metric]))
    errors = {n: sorted({e for other, e, _ in values if other == n}) for n, _, _ in values}
    swept = [name for name, at in errors.items() if len(at) > 1]
    with new_figure(FOLDER / "error.png", 10.0, 5.6) as figure:
        panels = figure.subplots(2, 3, sharex=True)
        for axes, (metric, label) in zip(panels.flat, PANELS.items(), strict=True):
            most = math.inf if metric == "eval/metrics" else 1.0
            for index, name in enumerate(swept):
                means = [t_interval(values[name, error, metric]) for error in errors[name]]
                at = [error + 0.004 * (index - 2) for error in errors[name]]  # bars side by side
                bars = zip(*((m.estimate - m.low, min(m.high, most) - m.estimate) for m in means),
                           strict=True)  # fmt: skip
                axes.errorbar(
                    at, [m.estimate for m in means], [*bars], label=name, capsize=2, **line(index)
                )
            axes.set_title(label, fontsize=9)
            axes.set_ylim(bottom=0)
            if metric != "eval/metrics":
                axes.set_ylim(top=1.05)
        for axes in panels[1]:
            axes.set_xlabel("error of the readers, eps")
        panels[0, 2].legend(loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    main()
