"""The cells of a table, one for each method and seed, as a CSV file: written, and compared with."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.report.collect import Cell, Collection, ReportError
from metaopt.report.tables import Summary

MACHINE = ("cpu", "cpu_capability", "threads", "torch", "device")
"""Columns with what the bits of a number depend on in addition to the code."""

APART = ("seconds", "stopped", "commit", *MACHINE)
"""Columns that are not compared."""

DEVIATIONS, SHARE = 3.0, 0.01
"""How far a cell may be off on another machine: in standard deviations of its method over seeds,
and at least as a share of its size. Sums in another order change a run as another seed would."""

Row = Mapping[str, str]


def write_cells(summary: Summary, path: Path) -> None:
    """Write every cell, with all metrics, its cost, and what made it."""
    runs = summary.runs
    units = list(dict.fromkeys(unit for c in runs.cells for unit in c.cost))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        costs = [f"budget/{unit}" for unit in units]
        ends = ["outer_steps", *APART]
        writer.writerow(["method", "seed", *runs.metric_names, *costs, *ends])
        for cell in (c for method in summary.methods for c in runs.of(method)):
            values = [cell.metrics.get(name, "") for name in runs.metric_names]
            spent = [cell.cost.get(unit, 0) for unit in units]
            steps, stopped, commit = map(cell.result.get, ("outer_steps", "stopped", "commit"))
            own = [cell.method, cell.seed, *values, *spent, steps, cell.seconds, stopped, commit]
            writer.writerow([*own, *machine(cell).values()])


def machine(cell: Cell) -> dict[str, Any]:
    """Return the columns `MACHINE` of a cell; empty where its result does not say."""
    known = {**(cell.result.get("hardware") or {}), **(cell.result.get("versions") or {})}
    device = str(cell.config.get("device", "cpu"))
    known["device"] = device if device == "cpu" else " and ".join(known.get("gpus") or [])
    return {name: known.get(name, "") for name in MACHINE}


@dataclass
class Comparison:
    """Recomputed cells next to those of a table.

    Args:
        exact: number of cells that were made on the machine that the table's cell records.
        other: number of the others, which are compared within a tolerance.
        off: what differs, one line for each number.
    """

    exact: int = 0
    other: int = 0
    off: list[str] = field(default_factory=list)

    def text(self, path: Path) -> str:
        """Return one sentence on what was compared with what."""
        ways = []
        if self.exact:
            ways.append(f"{self.exact} to the bit, on the machine that they record")
        if self.other:
            ways.append(
                f"{self.other} within {DEVIATIONS:g} standard deviations of their method over "
                f"seeds or {SHARE:.0%}, on another machine than theirs or with none recorded"
            )
        return f"{self.exact + self.other} cells of {path}: {'; '.join(ways)}"


def check_cells(runs: Collection, path: Path) -> Comparison:
    """Compare every cell of `runs` with the one of the same method and seed in a table.csv.

    Every metric of the table is compared, every cost, and the outer steps. It must be equal to the
    bit where `MACHINE` is the same, and else within
    max(`DEVIATIONS` * s, `SHARE` * |x|), with x the table's number and s the standard deviation of
    its method over seeds.

    Raises:
        ReportError: the file is missing or is not a table.csv of a report.
    """
    table = _read(path)
    deviations = _deviations(table)
    comparison = Comparison()
    for cell in runs.cells:
        row = table.get((cell.method, str(cell.seed)))
        name = f"{cell.method}, seed {cell.seed}"
        if row is None:
            comparison.off.append(f"{name}: {path} has no such cell")
            continue
        here = {column: str(value) for column, value in machine(cell).items()}
        exact = all(value and value == row.get(column) for column, value in here.items())
        comparison.exact += exact
        comparison.other += not exact
        for column, value, expected in _numbers(cell, row):
            deviation = deviations.get((cell.method, column), 0.0)
            room = 0.0 if exact else max(DEVIATIONS * deviation, SHARE * abs(expected))
            same = value == expected or (math.isnan(value) and math.isnan(expected))
            if not same and not abs(value - expected) <= room:
                near = f" ± {room:.6g}" if room else ""
                comparison.off.append(f"{name}, {column}: {expected!r}{near}; got {value!r}")
    return comparison


def _read(path: Path) -> dict[tuple[str, str], Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: dict[tuple[str, str], Row] = {
                (row["method"], row["seed"]): row for row in csv.DictReader(file)
            }
        for row in rows.values():
            _expected(row)
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ReportError(
            f"Cannot read {path} ({type(error).__name__}: {error}). --check compares with the "
            f"table.csv of a report."
        ) from error
    if not rows:
        raise ReportError(f"{path} holds no cell. --check compares with the table.csv of a report.")
    return rows


def _expected(row: Row) -> dict[str, float]:
    """Return the numbers of a cell; without those that it lacks."""
    return {k: float(v) for k, v in row.items() if v and k not in ("method", "seed", *APART)}


def _numbers(cell: Cell, row: Row) -> Iterator[tuple[str, float, float]]:
    """Yield column, number and expected number.

    NaN stands for a number that is not there; a unit that is not there was not spent. A metric
    that the table has no column for is new and is not compared.
    """
    actual = {name: value for name, value in cell.metrics.items() if name in row}
    actual |= {f"budget/{unit}": amount for unit, amount in cell.cost.items()}
    actual["outer_steps"] = float(cell.result.get("outer_steps", math.nan))
    expected = _expected(row)
    for column in sorted({*actual, *expected}):
        absent = 0.0 if column.startswith("budget/") else math.nan
        yield column, float(actual.get(column, absent)), expected.get(column, absent)


def _deviations(table: Mapping[tuple[str, str], Row]) -> dict[tuple[str, str], float]:
    """Return the standard deviation of each method's column over seeds, without its NaNs."""
    values: dict[tuple[str, str], list[float]] = {}
    for (method, _), row in table.items():
        for column, value in _expected(row).items():
            if math.isfinite(value):
                values.setdefault((method, column), []).append(value)
    return {key: float(np.std(x, ddof=1)) for key, x in values.items() if len(x) > 1}
