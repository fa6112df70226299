"""Compares the cells of finished runs with those of a table that was written before."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metaopt.report.cells import APART, machine
from metaopt.report.collect import Cell, Collection, ReportError
from metaopt.runs.checks import PREFIX

DEVIATIONS, SHARE = 3.0, 0.01
"""How far a number may be off: in standard deviations of its method over seeds, and at least as a
share of its size. Sums in another order, as on another CPU, change a run as another seed would."""

Row = Mapping[str, str]
Name = tuple[str, str]
"""A method and a seed, as a table.csv has them."""

Numbers = dict[tuple[str, str], dict[str, float]]
"""By method and column: the value of each seed."""


@dataclass
class Comparison:
    """What became of the cells of a table.

    Args:
        table: its file.
        equal: cells that are equal to the bit.
        within: cells of which some number is not, and all are within the tolerance.
        different: the others.
        missing: cells of the table without a finished run.
        extra: cells of the runs that the table does not have; they are not judged.
        off: what is beyond the tolerance, one line for each number.
        inexact: what is within it and not equal, though the table records the machine at hand.
        elsewhere: how the machine of a cell that is not equal differs, with the number of cells.
        furthest: how far the furthest number within the tolerance is off, as a share of it.
    """

    table: Path
    equal: list[Name] = field(default_factory=list)
    within: list[Name] = field(default_factory=list)
    different: list[Name] = field(default_factory=list)
    missing: list[Name] = field(default_factory=list)
    extra: list[Name] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)
    furthest: float = 0.0

    def failures(self, exact: bool) -> list[str]:
        """Return what the table is not, one line for each number or missing cell.

        Args:
            exact: whether its cells must be equal to the bit.
        """
        lines = [*self.off, *(f"{_named(cell)}: no finished run" for cell in self.missing)]
        return [*lines, *self.inexact, *self.refusals()] if exact else lines

    def refusals(self) -> list[str]:
        """Return why equality to the bit cannot be asked of some cells, one line per machine."""
        return [
            f"--exact cannot be asked of {count} cells: {why}. Without it they are compared within "
            "a tolerance."
            for why, count in self.elsewhere.items()
        ]

    def text(self) -> str:
        """Return in a sentence what became of the cells."""
        counts = {
            "equal to the bit": self.equal,
            f"within {DEVIATIONS:g} standard deviations of their method over seeds or {SHARE:.0%}":
            self.within,
            "different": self.different,
            "missing": self.missing,
        }  # fmt: skip
        total = sum(map(len, counts.values()))
        words = "; ".join(f"{len(cells)} {what}" for what, cells in counts.items() if cells)
        return f"{total} cells of {self.table}: {words}."

    def remarks(self) -> list[str]:
        """Return what a reader should know although it is no failure, one sentence each."""
        lines = []
        if self.within:
            lines.append(
                f"Within tolerance, the furthest number is off by {self.furthest:.2g} of it."
            )
        if self.inexact:
            lines.append(
                f"{len(self.inexact)} numbers are not equal to the bit, though they were made on "
                "the machine that the table records: the code, or another library than torch, has "
                "changed them. --exact lists them."
            )
        lines += [
            f"{count} cells that are not equal to the bit may differ by the machine: {why}."
            for why, count in self.elsewhere.items()
        ]
        if self.extra:
            lines.append(f"{len(self.extra)} cells are not in the table and were not compared.")
        return lines


def check_cells(runs: Collection | None, path: Path) -> Comparison:
    """Compare the cells of `runs` with those of the same method and seed in a table.csv.

    Every metric of the table is compared, every cost, and the outer steps. A number is within the
    tolerance where it is no further off than max(`DEVIATIONS` s, `SHARE` |x|), with x the table's
    number and s the standard deviation of its method over seeds; a cost or number of steps that is
    the same for all seeds must be the same again. So that a shift of all seeds does not pass, the
    mean over the n seeds of a method may be off by max(`DEVIATIONS` s sqrt(2 / n), `SHARE` |x|).

    Args:
        runs: the finished runs; `None` where there is none.
        path: the table.csv.

    Raises:
        ReportError: the file is missing or is not a table.csv of a report.
    """
    table = read_table(path)
    expected, actual = _by_method(table), Numbers()
    comparison = Comparison(path)
    cells = {(c.method, str(c.seed)): c for c in runs.cells} if runs else {}
    comparison.missing += [name for name in table if name not in cells]
    for name, cell in cells.items():
        if name not in table:
            comparison.extra.append(name)
            continue
        for column, value, _ in _numbers(cell, table[name]):
            actual.setdefault((cell.method, column), {})[name[1]] = value
        _compare(comparison, cell, table[name], expected)
    _compare_means(comparison, actual, expected)
    return comparison


def _compare(comparison: Comparison, cell: Cell, row: Row, expected: Numbers) -> None:
    """Sort a cell in: equal, within the tolerance, or different."""
    name = cell.method, str(cell.seed)
    off: list[str] = []
    near: list[str] = []
    for column, value, number in _numbers(cell, row):
        if value == number or (math.isnan(value) and math.isnan(number)):
            continue
        room = _room(expected.get((cell.method, column), {}), column, number)
        line = f"{_named(name)}, {column}: {number!r}{f' ± {room:.6g}' if room else ''}"
        inside = abs(value - number) <= room
        if inside:
            comparison.furthest = max(comparison.furthest, abs(value - number) / room)
        (near if inside else off).append(f"{line}; got {value!r}")
    comparison.off += off
    to = comparison.different if off else comparison.within if near else comparison.equal
    to.append(name)
    if off or near:
        if why := _elsewhere(cell, row):
            comparison.elsewhere[why] += 1
        else:
            comparison.inexact += near


def _compare_means(comparison: Comparison, actual: Numbers, expected: Numbers) -> None:
    """Say where the mean of a method is off; its cells are then different."""
    for (method, column), values in actual.items():
        before = expected.get((method, column), {})
        seeds = [
            s for s in values if math.isfinite(values[s]) and math.isfinite(before.get(s, math.nan))
        ]
        if len(seeds) < 2:
            continue
        mean, reference = (float(np.mean([x[s] for s in seeds])) for x in (values, before))
        room = _room(before, column, reference, math.sqrt(2 / len(seeds)))
        if not abs(mean - reference) <= room:
            comparison.off.append(
                f"{method}, mean of {column} over {len(seeds)} seeds: {reference!r} ± {room:.6g}; "
                f"got {mean!r}"
            )
            moved = [name for name in comparison.within if name[0] == method]
            comparison.within = [name for name in comparison.within if name[0] != method]
            comparison.different += moved


def _room(values: Mapping[str, float], column: str, number: float, factor: float = 1.0) -> float:
    """Return how far a number of a column may be off."""
    finite = [value for value in values.values() if math.isfinite(value)]
    deviation = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    counted = column.startswith("budget/") or column == "outer_steps"
    if counted and deviation == 0:
        return 0.0
    spread = 0.0 if math.isnan(deviation) else deviation
    return max(DEVIATIONS * factor * spread, SHARE * abs(number))


def _elsewhere(cell: Cell, row: Row) -> str:
    """Return how the machine of the table's cell differs from that of the run; empty if alike."""
    here = {column: str(value) for column, value in machine(cell).items()}
    unknown = [column for column in here if not row.get(column) or not here[column]]
    known = [column for column in here if column not in unknown]
    if changed := [f"{k} {row[k]}, here {here[k]}" for k in known if row[k] != here[k]]:
        return f"they were made with {'; '.join(changed)}"
    return f"their {', '.join(unknown)} are not recorded" if unknown else ""


def _named(name: Name) -> str:
    return f"{name[0]}, seed {name[1]}"


def read_table(path: Path) -> dict[Name, Row]:
    """Return the cells of a table.csv of a report.

    Raises:
        ReportError: the file is missing or is not one.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: dict[Name, Row] = {
                (row["method"], row["seed"]): row for row in csv.DictReader(file)
            }
        for row in rows.values():
            _expected(row)
        if cpu := _cpu_of(path.with_suffix(".md")):
            rows = {name: {**row, "cpu": row.get("cpu") or cpu} for name, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ReportError(
            f"Cannot read {path} ({type(error).__name__}: {error}). --check compares with the "
            f"table.csv of a report."
        ) from error
    if not rows:
        raise ReportError(f"{path} holds no cell. --check compares with the table.csv of a report.")
    return rows


def _cpu_of(text: Path) -> str:
    """Return the CPU that a table.md names, which the cells of older tables do not; else ""."""
    if not text.is_file():
        return ""
    line = re.search(r"^- Hardware: (?:cpu|processor) ([^,\n]+)", text.read_text("utf-8"), re.M)
    return line[1] if line else ""


def _expected(row: Row) -> dict[str, float]:
    """Return the numbers of a cell; without those that it lacks."""
    return {k: float(v) for k, v in row.items() if v and k not in ("method", "seed", *APART)}


def _numbers(cell: Cell, row: Row) -> Iterator[tuple[str, float, float]]:
    """Yield column, number and expected number.

    NaN stands for a number that is not there; a unit that is not there was not spent. A metric
    that the table has no column for is new and is not compared, nor is a check that was not made.
    """
    actual = {name: value for name, value in cell.metrics.items() if name in row}
    actual |= {f"budget/{unit}": amount for unit, amount in cell.cost.items()}
    actual["outer_steps"] = float(cell.result.get("outer_steps", math.nan))
    expected = {k: v for k, v in _expected(row).items() if k in actual or not k.startswith(PREFIX)}
    for column in sorted({*actual, *expected}):
        absent = 0.0 if column.startswith("budget/") else math.nan
        yield column, float(actual.get(column, absent)), expected.get(column, absent)


def _by_method(table: Mapping[Name, Row]) -> Numbers:
    """Return the numbers of a table by method, column and seed."""
    values: Numbers = {}
    for (method, seed), row in table.items():
        for column, value in _expected(row).items():
            values.setdefault((method, column), {})[seed] = value
    return values
