"""The cells of a table, one for each method and seed, as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from metaopt.report.collect import Cell
from metaopt.report.tables import Summary
from metaopt.runs.stopping import stop_of

MACHINE = ("cpu", "cpu_capability", "threads", "torch", "device")
"""Columns with what the bits of a number depend on in addition to the code."""

APART = ("seconds", "stopped", "commit", *MACHINE)
"""Columns that are not compared."""


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
            steps, commit = map(cell.result.get, ("outer_steps", "commit"))
            stop = stop_of(cell.result)
            row = [cell.method, cell.seed, *values, *spent, steps, cell.seconds, stop, commit]
            writer.writerow([*row, *machine(cell).values()])


def machine(cell: Cell) -> dict[str, Any]:
    """Return the columns `MACHINE` of a cell; empty where its result does not say."""
    known = {**(cell.result.get("hardware") or {}), **(cell.result.get("versions") or {})}
    device = str(cell.config.get("device", "cpu"))
    known["device"] = device if device == "cpu" else " and ".join(known.get("gpus") or [])
    return {name: known.get(name, "") for name in MACHINE}
