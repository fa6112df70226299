"""Schedules of an experiment's cells, pooled over seeds: tables, a figure, a schedule to replay.

`python -m metaopt.problems.rollout_length.schedules results/rollout_length/cartpole` reads the last
snapshot of each cell and writes what a single run's `figures` are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.files.reading import steps
from metaopt.files.tensors import CheckpointError, read_tensors
from metaopt.problems.rollout_length.options import Groups
from metaopt.problems.rollout_length.report import (
    Tests,
    draw_schedules,
    summary,
    write_tables,
)
from metaopt.report.collect import Cell, ReportError, collect


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for a mistake."""
    options = _parser().parse_args(argv)
    try:
        tests, groups, phase = pooled(options.folder, options.methods)
        out = options.out or options.folder / "schedules"
        paths = write_tables(tests, groups, phase, out, options.mean)
        paths.append(draw_schedules(tests, groups, phase, out / "schedules.png"))
    except (ReportError, ValueError, OSError, CheckpointError) as error:
        print(f"rollout_schedules: {error}", file=sys.stderr)
        return 2
    print(summary(tests, groups, phase))
    print("\n".join(["Written:", *(f"  {path}" for path in paths)]))
    return 0


def pooled(folder: Path, names: Sequence[str] | None = None) -> tuple[Tests, Groups, int]:
    """Return the results of the tests, the methods as groups, and the real steps of a phase.

    The runs of a method are those of its cells, one seed after the other.

    Args:
        folder: of an experiment's finished cells.
        names: the methods, in order; `None` for all.

    Raises:
        ReportError: no cell is finished.
        ValueError: there is no such method, the cells are not of one kind, or a test is not over.
    """
    results = collect(folder)
    names = results.methods if names is None else list(names)
    unknown = [name for name in names if name not in results.methods]
    if unknown or not names:
        raise ValueError(f"needs methods among {results.methods}; got {unknown or names}.")
    cells = {name: results.of(name) for name in names}
    kinds = {_kind(cell) for group in cells.values() for cell in group}
    counts = {name: sum(cell.config["problem"]["runs"] for cell in cells[name]) for name in names}
    if len(kinds) > 1 or len(set(counts.values())) > 1:
        raise ValueError(
            "needs methods with as many inner runs each, of the same tests, steps and phase; got "
            f"{counts} runs of (tests, steps, phase) {sorted(kinds)}. Choose some with --methods."
        )
    tests, _, phase = kinds.pop()
    records = [_records(cell) for group in cells.values() for cell in group]
    merged = {
        test: {k: torch.cat([part[k][i] for part in records]) for k in records[0]}
        for i, test in enumerate(tests)
    }
    return merged, Groups(sum(counts.values()), names, ["synthetic"] * len(names)), phase


def _kind(cell: Cell) -> tuple[tuple[str, ...], int, int]:
    """Return tests, real steps and phase of a cell, which has one group only."""
    problem: Mapping[str, Any] = cell.config["problem"]
    if "phase" not in problem or len(problem.get("groups") or [""]) > 1:
        raise ValueError(
            f"needs cells of problem=rollout_length with one method each; {cell.folder} is another "
            "one, or has several groups of runs."
        )
    return tuple(problem["tests"]), int(problem["steps"]), int(problem["phase"])


def _records(cell: Cell) -> Mapping[str, Tensor]:
    """Return the last snapshot of a cell."""
    snapshots = steps(cell.folder / "snapshots")
    records = read_tensors(snapshots[-1][1]) if snapshots else None
    if records is None or bool(records["scores"].isnan().any()):
        raise ValueError(f"needs cells whose tests are over; those of {cell.folder} are not.")
    return {k: records[k] for k in ("lengths", "scores", "updates")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m metaopt.problems.rollout_length.schedules",
        description="Schedules and learning curves of an experiment's cells, pooled over seeds.",
    )
    parser.add_argument("folder", type=Path, help="such as results/rollout_length/cartpole")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="methods, in order (default: all)"
    )
    parser.add_argument(
        "--mean", metavar="METHOD", help="method whose mean lengths are schedule.csv"
    )
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/schedules)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
