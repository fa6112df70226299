"""Intervals of nDCG that resample queries within a split, then splits.

A report's intervals are over splits alone, of which there are few. Here each of the splits of a
resample is one of those that were run, with as many of its test queries, both drawn with
replacement. The queries of a difference are drawn together.

    python -m metaopt.problems.few_shot_ranking.intervals results/few_shot_ranking/simulated \
        --baseline "supervised + fine-tuning"
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt.files.reading import read_yaml, steps
from metaopt.files.tensors import read_tensors
from metaopt.report.table import Table

RESAMPLES = 2_000
Splits = Mapping[int, Mapping[int, float]]
"""A figure by seed and query."""


class Ends(NamedTuple):
    """A mean over splits, each with the same weight, and its 95 % interval."""

    mean: float
    low: float
    high: float


def nested_interval(splits: Sequence[ArrayLike], seed: int = 0) -> Ends:
    """Return the mean over splits of the mean over queries, and its percentile interval.

    Args:
        splits: the figure of each test query, by split.
        seed: of the resamples: the same interval every time.

    Raises:
        ValueError: there is no split, or one without queries.

    Cost: 2,000 resamples of all queries for each split.
    """
    values = [np.asarray(split, float) for split in splits]
    if not values or any(v.ndim != 1 or not len(v) for v in values):
        raise ValueError(
            f"nested_interval needs one number or more of each of one split or more; got "
            f"{[v.shape for v in values]}."
        )
    draw = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for _ in values:
        chosen = draw.integers(len(values), size=RESAMPLES)
        for i, split in enumerate(values):
            which = np.flatnonzero(chosen == i)
            queries = draw.integers(len(split), size=(len(which), len(split)))
            means[which] += split[queries].mean(1)
    low, high = np.quantile(means / len(values), [0.025, 0.975])
    return Ends(float(np.mean([v.mean() for v in values])), float(low), float(high))


def paired(method: Splits, baseline: Splits) -> list[NDArray[np.float64]]:
    """Return the differences of two methods by query, for each seed that both have."""
    differences = []
    for seed in sorted(method.keys() & baseline.keys()):
        queries = sorted(method[seed].keys() & baseline[seed].keys())
        differences.append(np.array([method[seed][q] - baseline[seed][q] for q in queries]))
    return differences


def read(folder: Path, column: str = "ndcg") -> dict[tuple[str, int], dict[int, dict[int, float]]]:
    """Return a figure of the test queries of an experiment's runs, by label and k, seed and query.

    It is that of the last snapshot, which a run takes with figures=false, too.

    Raises:
        ValueError: no run has a snapshot, or a snapshot has no such figure.
    """
    figures: dict[tuple[str, int], dict[int, dict[int, float]]] = {}
    for path in sorted(folder.rglob("config.yaml")):
        snapshots = steps(path.with_name("snapshots"))
        if not snapshots:
            continue
        config, last = read_yaml(path, "Run it again."), read_tensors(snapshots[-1][1])
        for k, values in last["shots"].items():
            if column not in values:
                raise ValueError(f"{path.parent} has no {column}; it has {', '.join(values)}.")
            queries = zip(last["queries"].tolist(), values[column].tolist(), strict=True)
            figures.setdefault((config["label"], int(k)), {})[config["seed"]] = dict(queries)
    if not figures:
        raise ValueError(f"no run in {folder} has a snapshot; give the folder of an experiment.")
    return figures


def table(folder: Path, baseline: str, column: str = "ndcg") -> Table:
    """Return the rows of an experiment with intervals, and paired differences to a baseline.

    Raises:
        ValueError: no method has the baseline's label.
    """
    figures, rows = read(folder, column), []
    labels = list(dict.fromkeys(label for label, _ in figures))
    if baseline not in labels:
        raise ValueError(f"no method is called {baseline!r}; there are {', '.join(labels)}.")
    for (label, k), splits in figures.items():
        own = nested_interval([list(by_query.values()) for by_query in splits.values()])
        row = [label, str(k), str(len(splits)), _shown(own)]
        gaps = paired(splits, figures[baseline, k])
        rows.append([*row, "" if label == baseline else _shown(nested_interval(gaps), "+")])
    return Table(["method", "k", "splits", column, f"minus {baseline}"], rows)


def _shown(ends: Ends, sign: str = "") -> str:
    return f"{ends.mean:{sign}.3f} [{ends.low:{sign}.3f}, {ends.high:{sign}.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of an experiment as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of an experiment's runs")
    parser.add_argument("--baseline", default="supervised + fine-tuning", help="label of a method")
    parser.add_argument("--column", default="ndcg", help="ndcg, fused, baseline")
    options = parser.parse_args(arguments)
    print(table(options.folder, options.baseline, options.column).markdown())


if __name__ == "__main__":
    main()
