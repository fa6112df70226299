"""The command `metaopt tables`: recompute the committed tables and compare each cell.

What has been computed stays in results/, so that an interrupted command goes on where it ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from metaopt.cli import folders
from metaopt.cli.command import MULTIRUN
from metaopt.cli.committed import SETUP, CommittedTable, cells_of, committed
from metaopt.cli.fetched import fetching, unfetched
from metaopt.cli.jobs import job
from metaopt.cli.loading import CONFIG, composing
from metaopt.cli.sweep import multirun
from metaopt.report.check import Comparison, check_cells
from metaopt.report.table import Table
from metaopt.runs.provenance import commit

MOST = 5
"""Lines on what differs that are printed of a table."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 1 where a cell differs or is missing."""
    options = _parser().parse_args(folders.use(arguments))
    tables = committed(options.experiments, options.names)
    left_out = [table for table in tables if table.devices != ["cpu"]]
    for table in left_out:
        print(f"{table.name} is left out: it was made on {' and '.join(table.devices)}.")
    tables = [table for table in tables if table not in left_out]
    print(_plan(tables, options.jobs), flush=True)
    reasons: list[str] = []
    for experiment, group in groupby(tables, key=lambda table: table.experiment):
        reasons += _recompute(experiment, [*group], options.jobs)
    return _verdict(tables, options.exact, reasons)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metaopt tables",
        description="Recompute the committed tables and compare them, cell by cell.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="TABLE",
        help="family or family/experiment; all tables that were made on a CPU by default",
    )  # fmt: skip
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time (default 1)")
    parser.add_argument("--exact", action="store_true", help="cells must be equal to the bit")
    parser.add_argument(
        "--experiments", type=Path, default=Path("experiments"), metavar="FOLDER",
        help="where the tables are (default: experiments)",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1; got {text}")
    return int(text)


def _plan(tables: Sequence[CommittedTable], jobs: int) -> str:
    """Return what there is to do and about how long it takes, by the seconds of the tables."""
    missing = [check_cells(table.finished(), table.path).missing for table in tables]
    whole = sum(table.seconds(table.rows) for table in tables)
    rest = sum(table.seconds(names) for table, names in zip(tables, missing, strict=True))
    text = (
        f"{_counted(tables)}, {sum(len(t.rows) for t in tables):,} cells: about "
        f"{whole / 60:,.1f} core minutes by what they record; left to compute: {rest / 60:,.1f}, "
        f"with --jobs {jobs} about {rest / 60 / jobs:,.1f} minutes on idle cores."
    )
    asking = [t.name for t, names in zip(tables, missing, strict=True) if t.asks(names)]
    # A cell that found all its answers on disk has recorded no time for them.
    return text + (
        f"\n{', '.join(asking)}: with the time that a language model takes to answer on top."
        if asking
        else ""
    )


def _recompute(experiment: str, tables: Sequence[CommittedTable], jobs: int) -> list[str]:
    """Run the cells of an experiment that its tables have; return why some could not be."""
    given = [f"experiment={experiment}", MULTIRUN]
    if jobs > 1:
        given += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
    with composing() as hydra:
        chosen, reasons = cells_of(hydra, experiment, tables)
        absent = unfetched(hydra, CONFIG, [[given[0], *cell] for cell in chosen])
        ready = [cell for cell, names in zip(chosen, absent, strict=True) if not names]
        print(f"{experiment}: {len(ready)} runs", flush=True)
        if ready:
            multirun(hydra, CONFIG, given, partial(job, shared=True), ready)
    if len(ready) < len(chosen):
        reasons.append(
            f"{experiment}: {len(chosen) - len(ready)} runs read what was not fetched: "
            f"{fetching(set().union(*absent))}"
        )
    return reasons


def _verdict(tables: Sequence[CommittedTable], exact: bool, reasons: Sequence[str]) -> int:
    """Print what became of each table; return the exit code."""
    rows, failed = [], 0
    for table in tables:
        runs = table.finished()
        comparison = check_cells(runs, table.path)
        failures = comparison.failures(exact)
        failed += bool(failures)
        for text in failures[:MOST]:
            print(f"{table.name}: {text}", file=sys.stderr)
        if len(failures) > MOST:
            print(
                f"{table.name}: and {len(failures) - MOST} others; all of them: metaopt-report "
                f"{table.runs} --check {table.path}{' --exact' if exact else ''}",
                file=sys.stderr,
            )
        print("".join(f"{table.name}: {text}\n" for text in _remarks(comparison, runs)), end="")
        rows.append(_row(table, comparison, runs))
    for text in reasons:
        print(text, file=sys.stderr)
    print(f"\n{Table(HEADER, [*rows, _total(rows)]).text()}\n")
    if failed:
        print(f"{failed} of {len(tables)} tables differ or lack cells.")
        return 1
    print(f"Recomputed {_counted(tables)}: what the code gives.")
    return 0


def _counted(tables: Sequence[CommittedTable]) -> str:
    return "1 table" if len(tables) == 1 else f"{len(tables)} tables"


HEADER = ["table", "cells", "equal to the bit", "within tolerance", "different", "missing",
          "core minutes", "as committed"]  # fmt: skip


def _row(table: CommittedTable, comparison: Comparison, runs: Any) -> list[str]:
    became = comparison.equal, comparison.within, comparison.different, comparison.missing
    here = sum((c.seconds or 0) + SETUP for c in runs.first_replicates) if runs else 0.0
    minutes = here / 60, table.seconds(table.rows) / 60
    return [table.name, str(len(table.rows)), *(str(len(names)) for names in became),
            *(f"{x:.1f}" for x in minutes)]  # fmt: skip


def _total(rows: Sequence[Sequence[str]]) -> list[str]:
    columns = [*zip(*rows, strict=True)][1:]
    counts = [str(sum(map(int, column))) for column in columns[:-2]]
    return ["all", *counts, *(f"{sum(map(float, column)):.1f}" for column in columns[-2:])]


def _remarks(comparison: Comparison, runs: Any) -> list[str]:
    commits = {c.result.get("commit") for c in runs.cells} if runs else set()
    lines = comparison.remarks()
    if commit() and (others := sorted(str(x) for x in commits - {commit()})):
        lines.append(
            f"some runs are of commit {' and '.join(others)}, and the code is that of {commit()}; "
            "a run that is deleted from results/ is computed again."
        )
    return lines
