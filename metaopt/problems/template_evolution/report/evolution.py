"""What a run of template evolution hands over: the calibrated judge, a summary, transcripts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.engine.protocols import Report, Snapshots
from metaopt.llm import Client
from metaopt.metrics import CalibratedJudge
from metaopt.problems.template_evolution import rubric
from metaopt.problems.template_evolution.candidates import Candidate, arrays, judged
from metaopt.problems.template_evolution.objectives import outer_loss
from metaopt.problems.template_evolution.report.judge import HeldOut, write_report

if TYPE_CHECKING:
    from metaopt.problems.template_evolution.evolution import TemplateEvolution

RANGE = (rubric.LOW, rubric.HIGH)


class EvolutionReport(Report):
    """The calibrated judge of the best template, and what the run has spent."""

    def __init__(self, problem: TemplateEvolution) -> None:
        self.problem = problem

    def snapshot(self, outer: str, inner: dict[str, Any]) -> dict[str, Any]:
        """Return the template tried, its loss, and the best one so far."""
        rows = judged(self.problem.open_to_search(inner["log"]))
        loss = outer_loss(self.problem.objective, *arrays(rows)) if rows else float("inf")
        return {"tried": inner["template"], "loss": loss, "best": outer}

    def deliver(self, outer: str, inner: dict[str, Any], snapshots: Snapshots, folder: Path) -> str:
        """Write the calibrated judge with its report; return what a person wants to know first."""
        problem = self.problem
        calibrated = calibrate(problem, outer, inner["log"], snapshots, folder)
        return summary(problem.client, problem.task.template, outer, calibrated)


def calibrate(
    problem: TemplateEvolution,
    best: str,
    log: Sequence[Candidate],
    snapshots: Snapshots,
    folder: Path,
) -> str:
    """Fit threshold and probabilities for the best template, write the report, say where.

    Half of the queries are for fitting, the other half for measuring: of the task's examination,
    or, of a task of unknown truth, of the candidates of the last run, where the search has had
    nothing of the other half.
    """
    if problem.panel.outcome_is_score:
        return "no calibrated judge: prompts were ranked by the checker's outcome, without a judge"
    if len(problem.task.queries) < 2:
        return "no calibrated judge: it takes two queries, one to fit and one to measure on"
    templates = (problem.task.template, best)
    rows = [problem.examine(t) or problem.panel.judge(t, log) for t in templates]
    rows = [[c for c in side if c["outcome"] is not None] for side in rows]
    fitting = [[c for c in side if c["query"] % 2 == 0] for side in rows]
    testing = [[c for c in side if c["query"] % 2 == 1] for side in rows]
    try:
        judges = [
            CalibratedJudge.fit(t, [c["score"] for c in side], [c["outcome"] for c in side], RANGE)
            for t, side in zip(templates, fitting, strict=True)
        ]
        held_out = HeldOut(
            [int(c["outcome"]) for c in testing[0]], [c["query"] for c in testing[0]],
            [c["score"] for c in testing[0]], [c["score"] for c in testing[1]],
        )  # fmt: skip
        write_report(
            folder, judges[0], judges[1], held_out,
            [(step, float(s["loss"])) for step, s in snapshots],
            {
                "models": {role: lm.model for role, lm in problem.client.lms.items()},
                "authorisation": dict(problem.records.authorisation or {}),
                "fitted on": f"{len(fitting[0])} responses to every second query",
                "held out": f"{len(testing[0])} responses to the others",
            },
            objective=problem.objective,
            weights=_weights(snapshots),
        )  # fmt: skip
    except ValueError as reason:
        return f"no calibrated judge: {reason}"
    return f"calibrated judge: {folder / 'judge.json'}, report: {folder / 'report.html'}"


def summary(client: Client, first: str, best: str, calibrated: str) -> str:
    """Return what was spent by role, the first and the best template, and where the judge is."""
    spent = {role: client.spent(role) for role in client.lms}
    calls = ", ".join(f"{role} {s['lm_calls']:,.0f}" for role, s in spent.items())
    total = client.spent()
    lines = [
        f"calls: {total['lm_calls']:,.0f} ({calls}); tokens: {total['tokens']:,.0f}",
        "first template:", _indented(first),
        "best template:" if best != first else "best template: the first one",
        *([_indented(best)] if best != first else []),
        calibrated,
    ]  # fmt: skip
    return "\n".join(lines)


def write_transcripts(client: Client, log: Sequence[Candidate], folder: Path, number: int) -> Path:
    """Write the candidates of a round with their texts into `transcripts/`, for the owner alone."""
    path = folder / "transcripts" / f"round_{number:04d}.jsonl"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with open(path, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        for c in log:
            texts = {name: client.text(c[name]) for name in ("prompt", "response")}
            file.write(json.dumps({**c, **texts}) + "\n")
    return path


def _weights(snapshots: Snapshots) -> list[Mapping[str, float]] | None:
    """Return the weights of the best template at each snapshot; `None` for other templates."""
    try:
        return [rubric.parse(s["best"]).weights for _, s in snapshots]
    except ValueError:
        return None


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
