"""Learning curves and schedules of rollout lengths, in the layout of the paper's figure 1."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.engine.protocols import Report, Snapshots
from metaopt.problems.rollout_length.options import Groups, Lengths
from metaopt.problems.rollout_length.state import Runs
from metaopt.report.figures import line, new_figure
from metaopt.report.table import Table

Tests = Mapping[str, Mapping[str, Tensor]]
"""By name of a test: what `Records` holds of it, without the first dimension."""


class ScheduleReport(Report):
    """Learning curves, schedules and tables of the tests that are over.

    Args:
        names: of the tests.
        groups: the equal groups of the runs, one per method.
        phase: real steps P between two decisions.
        outer_steps: outer steps of the whole run.
    """

    def __init__(self, names: Sequence[str], groups: Groups, phase: int, outer_steps: int) -> None:
        self.names, self.groups, self.phase, self.outer_steps = names, groups, phase, outer_steps

    def snapshot(self, outer: Lengths, inner: Runs) -> dict[str, Any]:
        """Return the results of the tests so far."""
        return {k: v.cpu() for k, v in inner.records._asdict().items()}

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Write learning curves, schedules and tables."""
        options = tests, _, _ = self._over(snapshots), self.groups, self.phase
        if not tests:
            return []
        return [*write_tables(*options, folder), draw_schedules(*options, folder / "schedules.png")]

    def deliver(self, outer: Lengths, inner: Runs, snapshots: Snapshots, folder: Path) -> str:
        """Return the table of schedules and the path of their figure."""
        tests = self._over(snapshots)
        if not tests:
            return (
                f"No test was finished in {snapshots[-1][0]} outer steps, so there are no returns "
                f"to compare: one takes outer_steps={self.outer_steps} (debug=tiny stops before)."
            )
        table = listing(tests, self.groups, self.phase)
        return f"{table}\nfigure: {folder / 'figures' / 'schedules.png'}"

    def _over(self, snapshots: Snapshots) -> dict[str, dict[str, Tensor]]:
        """Return the last snapshot, by test, of the tests that are over."""
        records = snapshots[-1][1]
        running = records["scores"][:, :, -1].isnan().any(1).tolist()
        return {
            name: {k: v[i] for k, v in records.items()}
            for i, name in enumerate(self.names)
            if not running[i]
        }


def write_tables(
    tests: Tests, groups: Groups, phase: int, folder: Path, mean: str | None = None
) -> list[Path]:
    """Write `schedules.md`, one line per group, and `schedules.csv`, one per group and decision.

    Where there is one group, or `mean` names one, `schedule.csv` holds its mean lengths over the
    runs on the first test, ready for `metaopt.optimizers.recorded`.

    Raises:
        ValueError: `mean` is none of the groups.
    """
    if mean is not None and mean not in groups.names:
        raise ValueError(f"needs --mean among the methods {groups.names}; got {mean!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "schedules.md", folder / "schedules.csv"]
    paths[0].write_text(summary(tests, groups, phase))
    with paths[1].open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["test", "method", "decision", "real_steps", "length", "length_sd", "score", "score_se"]
        )
        for test, results in tests.items():
            table.writerows([test, *line] for line in _decisions(results, groups, phase))
    if mean is not None or len(groups.names) == 1:
        lengths = dict(groups.of(next(iter(tests.values()))["lengths"]))[mean or groups.names[0]]
        lines = [f"{i},{float(k):.6g}" for i, k in enumerate(lengths.mean(0))]
        paths.append(folder / "schedule.csv")
        paths[-1].write_text("\n".join(["decision,length", *lines]) + "\n")
    return paths


def _decisions(results: Mapping[str, Tensor], groups: Groups, phase: int) -> list[list[str]]:
    lines = []
    of_groups = zip(groups.of(results["lengths"]), groups.of(results["scores"]), strict=True)
    for (name, lengths), (_, scores) in of_groups:
        # The score before the first decision belongs to no length.
        columns = (lengths.mean(0), _spread(lengths), scores.mean(0)[1:], _error(scores)[1:])
        for d, numbers in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            lines.append([name, str(d), str((d + 1) * phase), *(f"{x:.6g}" for x in numbers)])
    return lines


def summary(tests: Tests, groups: Groups, phase: int) -> str:
    """Return a table: final returns and areas of each group, with what they cost."""
    rows = _rows(tests, groups, phase)
    text = Table(list(rows[0]), [list(row.values()) for row in rows]).markdown()
    return (
        f"{text}\n\nReturns are those of the greedy policy at the end, areas the mean over phases "
        "of the return while learning; mean ± standard error over the runs of a line. K: rollout "
        f"length, mean over runs ({next(iter(tests))}).\n"
    )


def listing(tests: Tests, groups: Groups, phase: int) -> str:
    """Return a table for the console: rollout lengths, returns at the end and while learning."""
    rows = _rows(tests, groups, phase)
    shown = ["schedule", "first K", "mean K", "last K", *(f"return ({test})" for test in tests)]
    shown.append(f"area ({next(iter(tests))})")
    text = Table(shown, [[row[name] for name in shown] for row in rows]).text()
    return (
        f"{text}\nmean ± standard error over {groups.each} runs a schedule; area: mean return "
        "while learning"
    )


def _rows(tests: Tests, groups: Groups, phase: int) -> list[dict[str, str]]:
    """Return the cells of each group by column."""
    first, rows = next(iter(tests.values())), []
    steps = str(first["lengths"].shape[1] * phase)
    for i, (name, lengths) in enumerate(groups.of(first["lengths"])):
        mean = lengths.mean(0)
        row = {"schedule": name or "all runs"}
        for column, k in (("first K", mean[0]), ("mean K", mean.mean()), ("last K", mean[-1])):
            row[column] = f"{float(k):.3g}"
        for test, results in tests.items():
            scores = groups.of(results["scores"])[i][1]
            row[f"return ({test})"] = _mean(scores[:, -1])
            row[f"area ({test})"] = _mean(scores[:, :-1].mean(1))
        updates = float(groups.of(first["updates"])[i][1].mean())
        row |= {"runs": str(groups.each), "updates": f"{updates:.0f}", "environment steps": steps}
        rows.append(row)
    return rows


def draw_schedules(tests: Tests, groups: Groups, phase: int, path: Path) -> Path:
    """Write a figure: for each test the returns along learning and the lengths.

    Bands are standard errors of the returns and standard deviations of the lengths, over runs.
    """
    with new_figure(path, 9.0, 3.2 * len(tests) + 0.4) as figure:
        panels = figure.subplots(len(tests), 2, squeeze=False)
        for (test, results), (left, right) in zip(tests.items(), panels, strict=True):
            steps = phase * torch.arange(1, results["lengths"].shape[1] + 1)
            curves, lengths = groups.of(results["scores"]), groups.of(results["lengths"])
            for i in range(len(groups.names)):
                style, name = line(i), groups.names[i] or "all runs"
                for axes, values, band, least in (
                    (left, curves[i][1][:, :-1], _error, -torch.inf),
                    (right, lengths[i][1], _spread, 0.0),
                ):
                    mean, width = values.mean(0), band(values)
                    low = (mean - width).clamp(min=least)
                    axes.plot(steps, mean, label=name, **style)
                    if len(groups.names) <= 4:
                        axes.fill_between(
                            steps, low, mean + width, color=style["color"], alpha=0.15, linewidth=0
                        )  # fmt: skip
            left.set(title=f"return while learning, {test}", xlabel="real steps")
            right.set(title=f"rollout length, {test}", xlabel="real steps", ylim=(-1, None))
            left.set_ylabel("return")
            right.set_ylabel("K")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return path


def _mean(values: Tensor) -> str:
    if len(values) == 1:
        return f"{float(values):.1f}"
    return f"{float(values.mean()):.1f} ± {float(_error(values)):.1f}"


def _error(values: Tensor) -> Tensor:
    """Return the standard error over the first dimension; 0 for one value."""
    return _spread(values).div(len(values) ** 0.5)


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation over the first dimension; 0 for one value."""
    return values.std(0) if len(values) > 1 else torch.zeros_like(values[0])
