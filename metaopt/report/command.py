"""The command `metaopt-report`: read finished runs, write and print a table and its figures."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt.files.errors import FolderError
from metaopt.files.writing import refuse_links, write_text
from metaopt.report import pages, sweep_figures, tables
from metaopt.report.cells import write_cells
from metaopt.report.check import Comparison, check_cells
from metaopt.report.collect import ReportError, collect
from metaopt.report.notes import missing, notes
from metaopt.report.settings import COLUMNS, settings_for
from metaopt.report.study import study_of
from metaopt.report.table import Table
from metaopt.report.tables import INTERVALS, Summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 when a check fails, 2 for a mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    command = shlex.join(["metaopt-report", *arguments])
    try:
        return _report(options, command)
    except (ReportError, FolderError, OSError) as error:
        print(f"metaopt-report: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metaopt-report",
        description="Tables, figures and pages from the finished runs below a folder.",
    )
    parser.add_argument("folder", type=Path, help="folder of a sweep, such as results/two_moons")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="columns of the table")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="method that the others are compared with"
    )
    parser.add_argument("--interval", choices=INTERVALS, default="t", help="kind of interval")
    listed = "; ".join(f"{name}: {text}" for name, text in COLUMNS.items())
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME", help=f"further columns; {listed}"
    )
    parser.add_argument("--level", type=_level, default=0.95, help="coverage (default 0.95)")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/report)")
    parser.add_argument(
        "--check", type=Path, metavar="TABLE.csv",
        help="compare the cells; exit 1 when one differs or is missing",
    )  # fmt: skip
    parser.add_argument(
        "--exact", action="store_true", help="with --check: equal to the bit, on the same machine"
    )
    return parser


def _level(text: str) -> float:
    level = float(text)
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, such as 0.95; got {text}")
    return level


def _report(options: argparse.Namespace, command: str) -> int:
    if options.exact and options.check is None:
        raise ReportError("--exact says how to compare; name a table with --check TABLE.csv.")
    runs, study = collect(options.folder), study_of(options.folder)
    settings = settings_for(runs, options.metrics, options.baseline, options.columns)
    if study is not None:
        runs = study.finished(runs)
        settings = study.settings(settings, runs)
    if runs.resplit and options.interval != "t":
        raise ReportError(
            "--interval bootstrap takes seeds to be independent, and those of this experiment are "
            "splits of one data set; use --interval t."
        )
    summary = Summary(runs, settings, options.interval, options.level)
    comparison = None if options.check is None else check_cells(runs, options.check)
    optional = [tables.differences(summary), tables.costs(summary), tables.reported(summary)]
    shown = [tables.results(summary), *(table for table in optional if table is not None)]
    searched = [] if study is None else study.notes()
    footer = [*searched, *notes(summary), f"Table made by: {command}"]
    gaps = missing(summary, options.folder)
    out = options.out or options.folder / "report"
    if options.out is None:  # in a folder that may be from elsewhere
        if out.is_symlink():
            raise ReportError(f"{out} is a symbolic link; name the folder to write to with --out.")
        refuse_links(out)
    try:
        paths = _write(summary, shown, footer, gaps, options.folder, out)
    except OSError as error:
        raise ReportError(
            f"{error.filename or out} cannot be written ({error.strerror}). Name another folder "
            "with --out FOLDER."
        ) from error
    _print(shown, footer, gaps, paths)
    return 0 if comparison is None else _judge(comparison, options.exact)


def _judge(comparison: Comparison, exact: bool) -> int:
    """Print what became of the cells of a table and return the exit code."""
    failures = comparison.failures(exact)
    for text in failures:
        print(f"off: {text}", file=sys.stderr)
    print("\n".join([comparison.text(), *comparison.remarks()]))
    return 1 if failures else 0


def _write(
    summary: Summary,
    shown: Sequence[Table],
    footer: Sequence[str],
    gaps: Sequence[str],
    root: Path,
    out: Path,
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "table.md", out / "table.tex", out / "table.csv"]
    lists = [("Notes", footer), ("Incomplete", gaps)]
    parts = [table.markdown() for table in shown]
    parts += ["\n".join([f"## {name}", "", *(f"- {x}" for x in xs)]) for name, xs in lists if xs]
    write_text(paths[0], "\n\n".join(parts) + "\n")
    comments = "\n".join(f"% {text}" for text in [*footer, *(f"Incomplete: {x}" for x in gaps)])
    blocks = [*(table.latex() for table in shown), comments]
    write_text(paths[1], "\n\n".join(blocks) + "\n")
    write_cells(summary, paths[2])
    dots = sweep_figures.dots(summary, out / "table.png")
    curves = sweep_figures.learning_curves(summary, out / "curves")
    pictures = {"Intervals": dots, "Learning curves": curves}
    page = pages.write_pages(summary, shown, footer, gaps, pictures, root, out)
    return [*paths, *dots, *curves, page]


def _print(
    shown: Sequence[Table], footer: Sequence[str], gaps: Sequence[str], paths: Sequence[Path]
) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    for table in shown:
        console.print(table.rich())
    lines = [*footer, *(f"Incomplete: {text}" for text in gaps)]
    for text in [*lines, "\nWritten:", *(f"  {path}" for path in paths)]:
        console.print(text, soft_wrap=True)
