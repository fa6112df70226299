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

from metaopt.problems.rollout_length.options import Rows
from metaopt.problems.rollout_length.report import (
    Tests,
    draw_schedules,
    summary,
    write_mean,
    write_tables,
)
from metaopt.report.collect import Cell, ReportError, collect
from metaopt.runs import checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for a mistake."""
    options = _parser().parse_args(argv)
    try:
        tests, rows, phase = pooled(options.folder, options.rows)
        paths = write(tests, rows, phase, options.out or options.folder / "schedules", options.mean)
    except (ReportError, ValueError, OSError, checkpoint.CheckpointError) as error:
        print(f"rollout_schedules: {error}", file=sys.stderr)
        return 2
    print(summary(tests, rows, phase))
    print("\n".join(["Written:", *(f"  {path}" for path in paths)]))
    return 0


def pooled(folder: Path, names: Sequence[str] | None = None) -> tuple[Tests, Rows, int]:
    """Return what the tests found in each row, the rows, and the real steps of a phase.

    The runs of a row are those of its cells, one seed after the other.

    Args:
        folder: of an experiment's finished cells.
        names: the rows, in order; `None` for all.

    Raises:
        ReportError: no cell is finished.
        ValueError: there is no such row, rows or cells are not of equal kind, or a test is open.
    """
    found = collect(folder)
    names = found.methods if names is None else list(names)
    unknown = [name for name in names if name not in found.methods]
    if unknown or not names:
        raise ValueError(f"needs rows among {found.methods}; got {unknown or names}.")
    cells = {name: found.of(name) for name in names}
    kinds = {_kind(cell) for row in cells.values() for cell in row}
    counts = {name: sum(cell.config["problem"]["runs"] for cell in cells[name]) for name in names}
    if len(kinds) > 1 or len(set(counts.values())) > 1:
        raise ValueError(
            "needs rows with as many inner runs each, of the same tests, steps and phase; got "
            f"{counts} runs of (tests, steps, phase) {sorted(kinds)}. Choose some with --rows."
        )
    tests, _, phase = kinds.pop()
    records = [_records(cell) for row in cells.values() for cell in row]
    merged = {
        test: {k: torch.cat([part[k][i] for part in records]) for k in records[0]}
        for i, test in enumerate(tests)
    }
    return merged, Rows(sum(counts.values()), names, ["synthetic"] * len(names)), phase


def write(
    tests: Tests, rows: Rows, phase: int, folder: Path, mean: str | None = None
) -> list[Path]:
    """Write `schedules.md`, `.csv` and `.png`, and where `mean` names a row its `schedule.csv`.

    Raises:
        ValueError: `mean` is none of the rows.
    """
    if mean is not None and mean not in rows.names:
        raise ValueError(f"needs --mean among the rows {rows.names}; got {mean!r}.")
    paths = write_tables(tests, rows, phase, folder)
    if mean is not None and len(rows.names) > 1:
        first = next(iter(tests.values()))
        paths.append(write_mean(dict(rows.of(first["lengths"]))[mean], folder / "schedule.csv"))
    return [*paths, draw_schedules(tests, rows, phase, folder / "schedules.png")]


def _kind(cell: Cell) -> tuple[tuple[str, ...], int, int]:
    """Return tests, real steps and phase of a cell, which has one row only."""
    problem: Mapping[str, Any] = cell.config["problem"]
    if "phase" not in problem or len(problem.get("rows") or [""]) > 1:
        raise ValueError(
            f"needs cells of problem=rollout_length with one row each; {cell.folder} is another "
            "one, or has rows side by side."
        )
    return tuple(problem["tests"]), int(problem["steps"]), int(problem["phase"])


def _records(cell: Cell) -> Mapping[str, Tensor]:
    """Return the last snapshot of a cell."""
    snapshots = checkpoint.steps(cell.folder / "snapshots")
    records = checkpoint.read_tensors(snapshots[-1][1]) if snapshots else None
    if records is None or bool(records["scores"].isnan().any()):
        raise ValueError(f"needs cells whose tests are over; those of {cell.folder} are not.")
    return {k: records[k] for k in ("lengths", "scores", "updates")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m metaopt.problems.rollout_length.schedules",
        description="Schedules and learning curves of an experiment's cells, pooled over seeds.",
    )
    parser.add_argument("folder", type=Path, help="such as results/rollout_length/cartpole")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows, in order (default: all)")
    parser.add_argument("--mean", metavar="ROW", help="row whose mean lengths are schedule.csv")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/schedules)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
