"""Draw the gain in true quality against the meta judge's error: `error.png`.

Reads `simulated/table.csv`: `python experiments/meta_policy_optimization/error.py`, a second.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from metaopt.report.figures import line, new_figure
from metaopt.report.stats import t_interval

FOLDER = Path(__file__).parent
AT = ", eps "


def main() -> None:
    """Write the figure: a line for each method whose name tells the error, with 95 % intervals."""
    gains: dict[tuple[str, float], list[float]] = defaultdict(list)
    with (FOLDER / "simulated" / "table.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, _, error = row["method"].partition(AT)
            if error:
                gains[name, float(error)].append(float(row["eval/quality"]))
    with new_figure(FOLDER / "error.png", 5.6, 3.6) as figure:
        axes = figure.add_subplot()
        for index, name in enumerate(dict.fromkeys(name for name, _ in gains)):
            errors = sorted(error for other, error in gains if other == name)
            means = [t_interval(gains[name, error]) for error in errors]
            at = [error + 0.006 * (index - 2) for error in errors]  # bars beside each other
            axes.errorbar(
                at, [m.estimate for m in means], [m.half for m in means], label=name, capsize=2,
                **line(index),
            )  # fmt: skip
        axes.axhline(0, color="0.55", linewidth=1)
        axes.set_xlabel("probability that an analysis of the meta judge is wrong, eps")
        axes.set_ylabel("gain in true quality")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    main()
