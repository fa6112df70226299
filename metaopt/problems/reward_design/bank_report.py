"""What a bank of rewards leaves: their success, what the test says of them, what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from metaopt.engine.protocols import Report, Snapshots
from metaopt.files.writing import write_text
from metaopt.problems.reward_design.tpe import Per, Rule
from metaopt.problems.reward_design.training import Training
from metaopt.report.table import Table

RULES: tuple[tuple[Per, Rule], ...] = tuple(
    (per, rule) for per in get_args(Per) for rule in get_args(Rule)
)
"""The rules of the test: what is compared, and with what."""

SEARCHES = {
    "none": "no test",
    "hardest": "per step, hardest failure",
    "pairs": "per step, all pairs",
    "seeded": "per step, hardest failure, seeded store",
    "without": "no test, without the two rewards that seed the store",
}
"""Searches in random order, by the ends of their metrics' names."""

SAVINGS = {
    "best_3": "best success after 3 trainings",
    "best_6": "after 6",
    "solved": "reach 0.8",
    "until": "trainings until then",
    "proposals_6": "proposals for 6 trainings",
}
VERDICTS = {"auroc": "AUROC", "pass": "passes", "precision": "precision", "recall": "recall"}


class BankReport(Report):
    """Writes `bank.md` and prints its last two tables.

    Args:
        names: of the rewards, in the order of the trainings.
        measure: returns the metrics of `RewardBank` from outer and inner state.
    """

    def __init__(
        self, names: Sequence[str], measure: Callable[[Any, Any], Mapping[str, float]]
    ) -> None:
        self.names, self.measure = names, measure

    def deliver(
        self, outer: Any, inner: Mapping[str, Any], snapshots: Snapshots, folder: Path
    ) -> str:
        """Write the page."""
        figures = self.measure(outer, inner)
        tables = [
            rewards_table(self.names, inner["trainings"]),
            _table("The test on episodes of all policies", "rates, rule", VERDICTS,
                   {f"{per}_{rule}": f"per {per}, {rule}" for per, rule in RULES}, figures),
            _table("A search in random order", "test", SAVINGS, SEARCHES, figures),
        ]  # fmt: skip
        parts = [table.markdown() for table in tables]
        write_text(folder / "bank.md", "\n\n".join(parts) + "\n")
        return "\n\n".join(f"{table.title}\n{table.text()}" for table in tables[1:])


def rewards_table(names: Sequence[str], trainings: Sequence[Training]) -> Table:
    """Return the rewards, those with the highest success first."""
    rows = [
        [
            name,
            f"`{training.reward.replace(chr(10), '; ')}`",
            f"{training.mean_success:.2f}",
            ", ".join(f"{success:.2f}" for success in training.success),
        ]
        for name, training in zip(names, trainings, strict=True)
    ]
    rows.sort(key=lambda row: -float(row[2]))
    return Table(["reward", "text", "success", "of each inner seed"], rows, "Rewards", 2)


def _table(
    title: str, first: str, columns: Mapping[str, str], rows: Mapping[str, str],
    figures: Mapping[str, float],
) -> Table:  # fmt: skip
    """Return the table of `figures[column_row]`; a row without figures is left out."""
    cells = [
        [text, *(f"{figures[f'{column}_{row}']:.3f}" for column in columns)]
        for row, text in rows.items()
        if f"{next(iter(columns))}_{row}" in figures
    ]
    return Table([first, *columns.values()], cells, title)
