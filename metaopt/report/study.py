"""What a search of hyperparameters (`hydra/sweeper=tune`) has found, for the report on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaopt.files.reading import damaged, read_json
from metaopt.report.collect import Cell, Collection
from metaopt.report.settings import Settings

SUMMARY = Path("study") / "summary.json"
"""What the search writes at its end, in the folder of the sweep."""


class Study:
    """A finished search: its objective, its trials, and which one is the best.

    Args:
        summary: what `SUMMARY` holds.

    Raises:
        KeyError, TypeError: it is the summary of no search.
    """

    def __init__(self, summary: dict[str, Any]) -> None:
        self.objective, self.direction = str(summary["objective"]), str(summary["direction"])
        self.counts = {k: int(summary[k]) for k in ("trials", "finished", "pruned", "failed")}
        self.pruned_runs = {str(name) for name in summary["pruned_runs"]}
        best = summary["best"]
        self.best = None if best is None else (int(best["trial"]), float(best["value"]))
        self.run = "" if best is None else str(best["run"])
        self.command = "" if best is None else str(best["command"])

    def finished(self, runs: Collection) -> Collection:
        """Return the runs without those that were pruned, which lack nothing."""
        rest = [(path, why) for path, why in runs.incomplete if path.name not in self.pruned_runs]
        return replace(runs, incomplete=rest)

    def settings(self, settings: Settings, runs: Collection) -> Settings:
        """Return the settings with trials in the order of the objective, the best one first.

        One whose objective is not finite comes after all others, whose order NaN would break.
        """
        if settings.methods:
            return settings
        sign = -1 if self.direction == "maximize" else 1
        values = {c.method: sign * self._value(c) for c in runs.cells}
        order = sorted(values, key=lambda method: (math.isnan(values[method]), values[method]))
        return replace(settings, methods=order)

    def _value(self, cell: Cell) -> float:
        spent = {f"budget/{unit}": amount for unit, amount in cell.cost.items()}
        return {**cell.metrics, **spent}.get(self.objective, math.nan)

    def notes(self) -> list[str]:
        """Return how many trials there were, which is the best, and what its value is worth."""
        counts = self.counts
        lines = [
            f"Search: {counts['trials']} trials, {counts['finished']} finished, "
            f"{counts['pruned']} pruned, {counts['failed']} failed; "
            f"{self.direction} {self.objective}."
        ]
        if self.best is None:
            return lines
        number, value = self.best
        return [
            *lines,
            f"Best: trial {number}, {self.objective} {value:.6g}, in {self.run}. It is the best of "
            f"{counts['finished']} on the same seed, and so too good; run it on others.",
            f"Its config: {self.command}",
        ]


def study_of(folder: Path) -> Study | None:
    """Return the search whose trials a folder holds; `None` where it holds none that has ended.

    Raises:
        DamagedFileError: the summary cannot be read.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    advice = "Run the command of the search again, which writes it, or delete the file."
    try:
        return Study(read_json(path, advice))
    except (KeyError, TypeError) as error:
        raise damaged(path, f"it is no summary of a search: {error}", advice) from error
