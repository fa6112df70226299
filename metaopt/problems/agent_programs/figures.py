"""The figure of a run: accuracy against calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.problems.agent_programs.statistics import Measured
from metaopt.report.figures import line, new_figure


def draw_accuracy_against_calls(
    history: Sequence[Mapping[str, Any]],
    solution: str,
    result: Measured | None,
    control: str,
    path: Path,
    exact: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Write accuracy in % against mean calls of a question.

    Args:
        history: runs {accuracy, calls, program} on training questions, at least one.
        solution: text of the program that was chosen.
        result: what it and the control did on held-out questions, or `None`.
        control: text of the control.
        path: of the figure.
        exact: curves (calls, accuracy) by label that are known of simulated workers.
    """
    with new_figure(path, 6.4, 4.2) as figure:
        axes = figure.subplots()
        calls = [entry["calls"] for entry in history]
        accuracy = [100 * entry["accuracy"] for entry in history]
        axes.plot(calls, accuracy, "o", color="0.7", markersize=4, label="tried, in training")
        for index, (label, curve) in enumerate(exact.items(), 1):
            x, y = zip(*curve, strict=True)
            axes.plot(x, [100 * value for value in y], marker=".", label=label, **line(index))
        if result is not None:
            sides = (
                (result.calls, result.accuracy, "solution, held out", "D", 0),
                (result.control_calls, result.control_accuracy, "control, held out", "s", 1),
            )
            for at, share, label, marker, index in sides:
                color = line(index)["color"]
                axes.plot([at], [100 * share], marker, color=color, markersize=8, label=label)
        axes.set_title("Accuracy against calls")
        axes.set_xlabel("calls of a question, mean")
        axes.set_ylabel("right answers, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
