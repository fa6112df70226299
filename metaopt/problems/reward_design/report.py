"""What a run hands over: the best reward as text and as Python, all rewards tried, and a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from metaopt.engine.protocols import Report, Snapshots
from metaopt.files.writing import write_text
from metaopt.problems.reward_design.export import write_reward
from metaopt.problems.reward_design.figures import draw_curve, draw_success
from metaopt.problems.reward_design.training import Training
from metaopt.report.page import Block, Figure, Heading, Verbatim, markdown, page
from metaopt.report.table import Table

if TYPE_CHECKING:
    from metaopt.problems.reward_design.problem import RewardDesign

TITLE = "Rewards, and the success of policies trained under them"
SUCCESS, CURVE = "figures/success.png", "figures/best_reward.png"


class RewardReport(Report):
    """The best reward as `reward.txt` and `reward.py`, all as `rewards.json`, and `report.html`."""

    def __init__(self, problem: RewardDesign) -> None:
        self.problem = problem

    def deliver(self, outer: Any, inner: Any, snapshots: Snapshots, folder: Path) -> str:
        """Write reward and report; return what a person wants to know first."""
        if inner is None or not inner["history"]:
            return "no reward was trained under"
        history, winner = inner["history"], self.problem.winner(outer, inner)
        write_reward(self.problem.expression(winner), self.problem.variables, folder)
        write_text(folder / "rewards.json", json.dumps(history, indent=1) + "\n")
        draw_success(history, folder / SUCCESS)
        blocks = [
            Heading("Best reward"), Verbatim(winner), *_measured(inner["final"], folder),
            Heading("All rewards"),
            Figure(SUCCESS, "Each reward is trained under from scratch, with new inner seeds."),
            Table(("outer step", "success", "return", "failed the test before", "reward"),
                  [_row(entry, remark) for entry, remark in _listed(history)]),
        ]  # fmt: skip
        write_text(folder / "report.md", markdown(TITLE, blocks))
        write_text(folder / "report.html", page(TITLE, blocks, folder))
        return self._summary(winner, inner, folder)

    def _summary(self, winner: str, inner: Mapping[str, Any], folder: Path) -> str:
        client = self.problem.client
        calls, tokens = client.spent()["lm_calls"], client.spent()["tokens"]
        failed = sum(_failed(entry) for entry in inner["history"] if entry["filed"])
        lines = [
            *client.failures(),
            "success   reward (one line each, in the order in which they were tried)",
            *(
                f"{fmean(entry['success']):7.2f}   {one_line(entry['reward'])}{remark}"
                for entry, remark in _listed(inner["history"])
            ),
            f"calls of the coder: {calls:,.0f}; tokens: {tokens:,.0f}; rewards that failed the "
            f"test: {failed}",
        ]
        if inner["final"] is not None:
            final: Training = inner["final"]
            seeds = ", ".join(f"{success:.2f}" for success in final.success)
            lines.append(
                f"best reward, trained again with fresh seeds: success {final.mean_success:.2f} "
                f"({seeds})"
            )
        lines += [f"    {line}" for line in winner.splitlines()]
        lines.append(f"reward: {folder / 'reward.py'}, report: {folder / 'report.html'}")
        return "\n".join(lines)


def one_line(reward: str) -> str:
    """Return the text of a reward in one line."""
    return "; ".join(reward.splitlines())


def _measured(final: Training | None, folder: Path) -> Iterator[Block]:
    if final is None:
        return
    draw_curve(final, folder / CURVE)
    rows = [[f"inner seed {i}", f"{success:.2f}"] for i, success in enumerate(final.success, 1)]
    yield (
        "Trained under again, with fresh inner seeds: the success that selected it is the highest "
        "of several, and so too high."
    )
    yield Table(("training", "success"), [*rows, ["mean", f"{final.mean_success:.2f}"]])
    yield Figure(CURVE, "Greedy episodes along this training.")


def _listed(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the trainings in their order, and a remark on those of a reward trained again."""
    counts = Counter(entry["number"] for entry in history)
    for entry in sorted(history, key=lambda entry: (entry["number"], entry["filed"])):
        again = counts[entry["number"]] > 1 and entry["filed"]
        remark = ""
        if again:
            remark = "   (the best of these, trained again)"
        elif entry["tested"] and not entry["passed"]:
            remark = (
                f"   (the best so far, trained again: {entry['tested']} in a row failed the test)"
            )
        yield entry, remark


def _row(entry: Mapping[str, Any], remark: str) -> Sequence[str]:
    return [
        str(entry["number"]), f"{fmean(entry['success']):.2f}", f"{entry['return']:.3g}",
        str(_failed(entry)), one_line(entry["reward"]) + remark,
    ]  # fmt: skip


def _failed(entry: Mapping[str, Any]) -> int:
    """Return how many rewards failed the test before this training."""
    return int(entry["tested"]) - int(entry["passed"])
