"""The command `metaopt-report`: read finished runs, write and print a table and its figures."""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metaopt.report import plots, tables
from metaopt.report.check import check
from metaopt.report.collect import ReportError, collect
from metaopt.report.grid import Grid, latex, markdown, terminal
from metaopt.report.notes import missing, notes
from metaopt.report.settings import settings_for
from metaopt.report.tables import INTERVALS, Summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 when a check fails, 2 for a mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    command = shlex.join(["metaopt-report", *arguments])
    try:
        return _report(options, command)
    except (ReportError, OSError) as error:
        print(f"metaopt-report: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metaopt-report", description="Tables and figures from the finished runs below a folder."
    )
    parser.add_argument("folder", type=Path, help="folder of a sweep, such as results/two_moons")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="columns of the table")
    parser.add_argument("--baseline", metavar="ROW", help="row that the others are compared with")
    parser.add_argument("--interval", choices=INTERVALS, default="t", help="kind of interval")
    parser.add_argument("--level", type=_level, default=0.95, help="coverage (default 0.95)")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/report)")
    parser.add_argument(
        "--check", type=Path, metavar="JSON", help="expected means; exit 1 when one is off"
    )
    return parser


def _level(text: str) -> float:
    level = float(text)
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, such as 0.95; got {text}")
    return level


def _report(options: argparse.Namespace, command: str) -> int:
    found = collect(options.folder)
    settings = settings_for(found, options.metrics, options.baseline)
    if settings.resplit and options.interval != "t":
        raise ReportError(
            "--interval bootstrap takes seeds to be independent, and those of this experiment are "
            "splits of one data set (report.resplit); use --interval t."
        )
    summary = Summary(found, settings, options.interval, options.level)
    off = check(summary, options.check) if options.check else []
    made = [tables.results(summary), tables.differences(summary), tables.costs(summary)]
    grids = [grid for grid in [*made, tables.reported(summary)] if grid is not None]
    footer = [*notes(summary), f"Table made by: {command}"]
    gaps = missing(summary, options.folder)
    paths = _write(summary, grids, footer, gaps, options.out or options.folder / "report")
    _print(grids, footer, gaps, paths)
    for text in off:
        print(f"off: {text}", file=sys.stderr)
    if options.check and not off:
        print(f"Every mean is within its tolerance of {options.check}.")
    return 1 if off else 0


def _write(
    summary: Summary, grids: Sequence[Grid], footer: Sequence[str], gaps: Sequence[str], out: Path
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "table.md", out / "table.tex", out / "table.csv"]
    lists = [("Notes", footer), ("Incomplete", gaps)]
    parts = [markdown(grid) for grid in grids]
    parts += ["\n".join([f"## {name}", "", *(f"- {x}" for x in xs)]) for name, xs in lists if xs]
    paths[0].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    comments = "\n".join(f"% {text}" for text in [*footer, *(f"Incomplete: {x}" for x in gaps)])
    blocks = [*(latex(grid) for grid in grids), comments]
    paths[1].write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    _write_cells(summary, paths[2])
    curves = plots.learning_curves(summary, out / "learning_curves.png")
    drawn = [plots.dots(summary, out / "table.png"), curves]
    return paths + [path for path in drawn if path is not None]


def _write_cells(summary: Summary, path: Path) -> None:
    found = summary.found
    units = list(dict.fromkeys(u for c in found.cells for u in c.result.get("budget") or {}))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        ends = ["outer_steps", "seconds", "stopped", "commit"]
        writer.writerow(
            ["row", "seed", *found.metric_names, *(f"budget/{u}" for u in units), *ends]
        )
        for cell in (c for row in summary.rows for c in found.row(row)):
            result = cell.result
            values = [cell.metrics.get(name, "") for name in found.metric_names]
            spent = [(result.get("budget") or {}).get(unit, 0) for unit in units]
            tail = [result.get("outer_steps"), cell.seconds, result.get("stopped")]
            writer.writerow([cell.row, cell.seed, *values, *spent, *tail, result.get("commit")])


def _print(
    grids: Sequence[Grid], footer: Sequence[str], gaps: Sequence[str], paths: Sequence[Path]
) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    for grid in grids:
        console.print(terminal(grid))
    for text in footer:
        console.print(text, soft_wrap=True)
    for text in gaps:
        console.print(f"Incomplete: {text}", soft_wrap=True)
    console.print("\nWritten:")
    for path in paths:
        console.print(f"  {path}", soft_wrap=True)
