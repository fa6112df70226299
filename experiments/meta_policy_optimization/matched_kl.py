"""Compare rows at equal KL divergence: gain in true quality where a run first is as far as that.

Reads finished runs that were evaluated after every inner run (README.md has their command) and
prints a Markdown table with a column for each KL in nats, in a second:
`python experiments/meta_policy_optimization/matched_kl.py FOLDER 1 2 4`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
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


def main(folder: Path, levels: Sequence[float]) -> None:
    """Print the table, a row for each method."""
    curves: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for run in sorted(path.parent for path in folder.glob("*/result.json")):
        label = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["label"]
        curves[label].append(curve(run))
    if not curves:
        raise SystemExit(f"{folder} holds no finished run; README.md has the command of the runs.")
    print("| row |" + "".join(f" KL {kl:g} |" for kl in levels) + "\n|---|" + "---|" * len(levels))
    for label, runs in curves.items():
        print(f"| {label} |" + "".join(f" {cell(runs, kl)} |" for kl in levels))


if __name__ == "__main__":
    try:
        kls = [float(word) for word in sys.argv[2:]]
    except ValueError:
        kls = []
    if not kls or min(kls) <= 0:
        sys.exit("usage: matched_kl.py FOLDER KL...: a folder of runs, and KLs in nats above 0.")
    main(Path(sys.argv[1]), kls)
