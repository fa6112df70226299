"""What a run hands over: the metrics as text and as JSON, and a page with what each is worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.engine.protocols import Report, Snapshots
from metaopt.files.writing import write_text
from metaopt.problems.metric_induction.figures import draw_history
from metaopt.problems.metric_induction.measuring import Measured
from metaopt.problems.metric_induction.metric_set import Metric, parse
from metaopt.report.page import Block, Figure, Heading, markdown, page
from metaopt.report.table import Table

if TYPE_CHECKING:
    from metaopt.problems.metric_induction.problem import MetricInduction

TITLE = "Metrics induced from feedback"
FIGURE = "figures/coverage.png"


class MetricReport(Report):
    """The set of metrics as `metrics.txt` and `metrics.json`, with `report.html`."""

    def __init__(self, problem: MetricInduction) -> None:
        self.problem = problem

    def deliver(self, outer: str, inner: Any, snapshots: Snapshots, folder: Path) -> str:
        """Write metrics and report; return what a person wants to know first."""
        problem, metrics = self.problem, parse(outer)
        history = inner["history"] if inner else []
        numbers = problem.metrics(outer, inner)
        measured = problem.measure(outer, "test") if "coverage" in numbers else None
        write_text(folder / "metrics.txt", outer + "\n")
        write_text(folder / "metrics.json", self._json(metrics, measured, numbers))
        blocks = [*self._history(history, folder), *self._set(metrics, measured, numbers)]
        write_text(folder / "report.md", markdown(TITLE, blocks))
        write_text(folder / "report.html", page(TITLE, blocks, folder))
        return self._summary(metrics, numbers, history, folder)

    def _json(
        self, metrics: Sequence[Metric], measured: Measured | None, numbers: Mapping[str, float]
    ) -> str:
        traits = [{}] * len(metrics) if measured is None else [
            {"traits": of, "unmatched_traits": count} for count, of in measured.unmatched
        ]  # fmt: skip
        content = {
            "metrics": [{**m._asdict(), **t} for m, t in zip(metrics, traits, strict=True)],
            "test": dict(numbers),
            "data": self.problem.data.source,
            "models": {role: lm.model for role, lm in self.problem.client.lms.items()},
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def _history(self, history: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[Block]:
        if not history:
            return
        draw_history(history, self.problem.measured_on, folder / FIGURE)
        yield Heading("Sets that were tried")
        yield Figure(
            FIGURE,
            "Coverage and redundancy of each set, on the part that metrics are made from and on "
            "the part that they are chosen on, and the number of metrics.",
        )

    def _set(
        self, metrics: Sequence[Metric], measured: Measured | None, numbers: Mapping[str, float]
    ) -> Iterator[Block]:
        yield Heading("On the test part")
        rows = [[name.replace("_", " "), f"{value:.3g}"] for name, value in numbers.items()]
        yield Table(("figure", "value"), rows)
        yield Heading("Metrics")
        if measured is None:
            yield f"The test part could not be measured: {self.problem.client.stopped}."
        else:
            yield "Traits are ratings of +1 or -1 in the test part, unmatched where nobody said so."
        shares = [("", "")] * len(metrics) if measured is None else [
            (str(of), str(count)) for count, of in measured.unmatched
        ]  # fmt: skip
        rows = [
            [metric.name, " ".join(metric.definition.split()), *counts]
            for metric, counts in zip(metrics, shares, strict=True)
        ]
        yield Table(("metric", "definition", "traits", "unmatched"), rows)

    def _summary(
        self,
        metrics: Sequence[Metric],
        numbers: Mapping[str, float],
        history: Sequence[Mapping[str, Any]],
        folder: Path,
    ) -> str:
        client = self.problem.client
        calls = ", ".join(f"{role} {client.spent(role)['lm_calls']:,.0f}" for role in client.lms)
        measured = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items()
        )
        lines = [f"    {m.name}: {' '.join(m.definition.split())}" for m in metrics]
        return "\n".join(
            [
                *client.failures(),
                f"calls: {calls}",
                f"sets tried: {len(history)}; test part: {measured}",
                *(lines or ["    no metric"]),
                f"metrics: {folder / 'metrics.txt'}, report: {folder / 'report.html'}",
            ]
        )
