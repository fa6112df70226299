"""Compare rows at equal KL divergence: gain in true quality where a run first is as far as that.

Reads finished runs that were evaluated after every inner run (README.md has their command) and
prints a Markdown table with a column for each KL in nats, in a second; the gain of each run, of
which the table has means and intervals, goes into a csv file where one is named:
`python experiments/meta_policy_optimization/matched_kl.py FOLDER 1 2 4 points.csv`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from metaopt.report.stats import t_interval


def at_kl(curve: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Return the quality where a curve of (KL, quality) first reaches a KL, if it does.

    Linear between two evaluations. The curve starts with the first policy, at (0, 0).
    """
    for (before, worse), (after, better) in pairwise(curve):
        if before < kl <= after:
            return worse + (better - worse) * (kl - before) / (after - before)
    return None


def cell(runs: Sequence[Sequence[tuple[float, float]]], kl: float) -> str:
    """Return mean and 95 % interval of the runs that reach a KL, and how many do, if not all."""
    gains = [gain for run in runs if (gain := at_kl(run, kl)) is not None]
    share = f"{len(gains)} of {len(runs)}"
    if len(gains) < 2:
        return share
    mean = t_interval(gains)
    reached = f" ({share})" if len(gains) < len(runs) else ""
    return f"{mean.estimate:.2f} ± {mean.half:.2f}{reached}"


def curve(run: Path) -> list[tuple[float, float]]:
    """Return (KL, quality) of a run after every inner run, from (0, 0) of the first policy on."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if not all("eval/kl" in row and "eval/quality" in row for row in rows):
        raise SystemExit(
            f"{run} was not evaluated after every inner run; make the runs with eval_every=1."
        )
    return [(0.0, 0.0), *((row["eval/kl"], row["eval/quality"]) for row in rows)]


Curves = Mapping[str, Mapping[int, Sequence[tuple[float, float]]]]
"""By label and seed."""


def write_points(curves: Curves, levels: Sequence[float], path: Path) -> None:
    """Write the gain of each run at each KL, empty where it does not come as far."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "seed", *(f"KL {kl:g}" for kl in levels)])
        for label, runs in curves.items():
            for seed, run in sorted(runs.items()):
                writer.writerow([label, seed, *(at_kl(run, kl) for kl in levels)])


def main(folder: Path, levels: Sequence[float], points: Path | None = None) -> None:
    """Print the table, a row for each method; write what it is made of."""
    curves: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for run in sorted(path.parent for path in folder.glob("*/result.json")):
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        curves.setdefault(config["label"], {})[config.get("seed", 0)] = curve(run)
    if not curves:
        raise SystemExit(f"{folder} holds no finished run; README.md has the command of the runs.")
    print("| row |" + "".join(f" KL {kl:g} |" for kl in levels) + "\n|---|" + "---|" * len(levels))
    for label, runs in curves.items():
        each = list(runs.values())
        print(f"| {label} |" + "".join(f" {cell(each, kl)} |" for kl in levels))
    if points is not None:
        write_points(curves, levels, points)


if __name__ == "__main__":
    *rest, last = sys.argv[1:] or [""]
    named = Path(last) if last.endswith(".csv") else None
    words = rest if named else sys.argv[1:]
    try:
        kls = [float(word) for word in words[1:]]
    except ValueError:
        kls = []
    if not kls or min(kls) <= 0:
        sys.exit(
            "usage: matched_kl.py FOLDER KL... [POINTS.csv]: a folder of runs, and KLs in nats "
            "above 0."
        )
    main(Path(words[0]), kls, named)
