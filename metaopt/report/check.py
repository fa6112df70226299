"""Compare a table's means with those that an experiment promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

from metaopt.report.collect import ReportError
from metaopt.report.tables import Summary


def check(summary: Summary, path: Path) -> list[str]:
    """Return what differs from `{"row": {"metric": {"mean": m, "tolerance": t}}}`, one a line.

    Means and tolerances are in the units of the table, after `report.scale`; a mean is right when
    |mean - m| <= t. A row or a metric that is missing counts as different.

    Raises:
        ReportError: the file is missing or has another form.
    """
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
        wanted = [
            (row, metric, float(value["mean"]), float(value["tolerance"]))
            for row, metrics in expected.items()
            for metric, value in metrics.items()
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        form = '{"row": {"metric": {"mean": 0.9, "tolerance": 0.01}}}'
        raise ReportError(f"Cannot read {path}: {error!r}.\nIt must look like {form}.") from error
    found = (_off(summary, *entry) for entry in wanted)
    return [text for text in found if text is not None]


def _off(summary: Summary, row: str, metric: str, mean: float, tolerance: float) -> str | None:
    got = summary.estimate(row, metric).estimate
    if math.isnan(got):
        return f"{row}, {metric}: expected {mean:g} ± {tolerance:g}; no finished run has it"
    if abs(got - mean) <= tolerance:
        return None
    return f"{row}, {metric}: expected {mean:g} ± {tolerance:g}; got {got:.6g}"
