"""What a run hands over: the program, all programs tried, and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.engine.protocols import Report, Snapshots
from metaopt.files.writing import write_text
from metaopt.problems.agent_programs.figures import draw_accuracy_against_calls
from metaopt.problems.agent_programs.statistics import Measured
from metaopt.report.page import Block, Figure, Heading, Verbatim, markdown, page
from metaopt.report.table import Table

if TYPE_CHECKING:
    from metaopt.problems.agent_programs.problem import AgentPrograms

TITLE = "Programs, their accuracy and their calls"
FIGURE = "figures/accuracy_against_calls.png"
MOST_ROWS = 20


class ProgramReport(Report):
    """The best program as `program.txt`, all as `programs.json`, and `report.md` and `.html`."""

    def __init__(self, problem: AgentPrograms) -> None:
        self.problem = problem

    def deliver(self, outer: Any, inner: Any, snapshots: Snapshots, folder: Path) -> str:
        """Write program and report; return what a person wants to know first."""
        if inner is None or not inner["history"]:
            return "no program was run"
        problem, history = self.problem, inner["history"]
        result = problem.measured(inner)
        write_text(folder / "program.txt", outer + "\n")
        write_text(folder / "programs.json", json.dumps(_finite(history), indent=1) + "\n")
        draw_accuracy_against_calls(
            history, outer, result, str(problem.control), folder / FIGURE, problem.exact_curve()
        )
        best = _best(history)
        rows = [(f"{100 * e['accuracy']:.1f}", f"{e['calls']:.2f}", e["program"]) for e in best]
        blocks: list[Block] = [
            Heading("Program"), Verbatim(outer), *_comparison(result, str(problem.control)),
            Heading("Programs tried"),
            f"{len(history)} runs on {len(problem.train)} training questions, "
            f"{problem.training_calls(inner):,.0f} calls of the workers in all; the best of each.",
            Table(("accuracy in training, %", "calls", "program"), rows[:MOST_ROWS]),
            Figure(FIGURE, "Programs tried, in training; solution and control, held out."),
        ]  # fmt: skip
        write_text(folder / "report.md", markdown(TITLE, blocks))
        write_text(folder / "report.html", page(TITLE, blocks, folder))
        return self._summary(outer, inner, best, result, folder)

    def _summary(
        self,
        outer: str,
        inner: Mapping[str, Any],
        best: Sequence[Mapping[str, Any]],
        result: Measured | None,
        folder: Path,
    ) -> str:
        problem = self.problem
        lines = [
            *problem.client.failures(),
            "accuracy in training, calls, program (the best five)",
            *(f"{100 * e['accuracy']:7.1f} % {e['calls']:6.2f}   {e['program']}" for e in best[:5]),
            f"training: {len(inner['history'])} runs on {len(problem.train)} questions, "
            f"{problem.training_calls(inner):,.0f} calls of the workers",
        ]
        if unreadable := sum(entry["unreadable"] for entry in inner["history"]):
            lines.append(f"answers of the rewriter that were no legal program: {unreadable}")
        if result is not None:
            lines += [
                f"held out, {len(problem.test)} questions:",
                f"{100 * result.accuracy:7.1f} % {result.calls:6.2f}   {outer}",
                f"{100 * result.control_accuracy:7.1f} % {result.control_calls:6.2f}   "
                f"{problem.control} (control)",
                f"gain over the control: {_gain(result)}",
            ]
        lines.append(f"program: {folder / 'program.txt'}, report: {folder / 'report.html'}")
        return "\n".join(lines)


def _gain(result: Measured) -> str:
    text = f"{100 * result.gain:+.1f} points"
    if result.gain_interval is None:
        return text
    low, high = (100 * end for end in result.gain_interval)
    return f"{text} (95 % by question: {low:+.1f} to {high:+.1f})"


def _comparison(result: Measured | None, control: str) -> Sequence[Block]:
    if result is None:
        return []
    rows = [
        ("this program", f"{100 * result.accuracy:.1f}", f"{result.calls:.2f}"),
        (
            f"control: {control}",
            f"{100 * result.control_accuracy:.1f}",
            f"{result.control_calls:.2f}",
        ),
    ]
    return [
        Heading("On held-out questions"),
        Table(("", "accuracy, %", "calls of a question"), rows),
        f"Gain over the control: {_gain(result)}.",
    ]


def _best(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the best run of each program, the lowest value first."""
    best: dict[str, Mapping[str, Any]] = {}
    for entry in sorted(history, key=lambda entry: entry["value"]):
        best.setdefault(entry["program"], entry)
    return list(best.values())


def _finite(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the history with null for the value of a run that was cut short."""
    return [{k: None if v == float("inf") else v for k, v in entry.items()} for entry in history]
