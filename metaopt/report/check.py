"""Compare a table's means with those that an experiment promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

from metaopt.report.collect import ReportError
from metaopt.report.tables import Summary


def check(summary: Summary, path: Path) -> list[str]:
    """Return what differs from `{"method": {"metric": {"mean": m, "tolerance": t}}}`, one per line.

    Means and tolerances are in the units of the table, after `report.scale`; a mean is right when
    |mean - m| <= t. A method or a metric that is missing counts as different.

    Raises:
        ReportError: the file is missing or has another form.
    """
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
        expectations = [
            (method, metric, float(value["mean"]), float(value["tolerance"]))
            for method, metrics in expected.items()
            for metric, value in metrics.items()
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        form = '{"method": {"metric": {"mean": 0.9, "tolerance": 0.01}}}'
        raise ReportError(f"Cannot read {path}: {error!r}.\nIt must look like {form}.") from error
    differences = (_difference(summary, *entry) for entry in expectations)
    return [text for text in differences if text is not None]


def _difference(
    summary: Summary, method: str, metric: str, mean: float, tolerance: float
) -> str | None:
    measured = summary.estimate(method, metric).estimate
    if math.isnan(measured):
        return f"{method}, {metric}: expected {mean:g} ± {tolerance:g}; no finished run has it"
    if abs(measured - mean) <= tolerance:
        return None
    return f"{method}, {metric}: expected {mean:g} ± {tolerance:g}; got {measured:.6g}"
