"""What a run hands over: the calibrated judge with its report, and a summary.

Half of the queries are for fitting threshold and probabilities, the others for measuring.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.data.solutions import Solution
from metaopt.engine.protocols import Report, Snapshots
from metaopt.llm import Client
from metaopt.llm.rubric import HIGH, LOW, parse
from metaopt.metrics.best_of_n import best_of_n
from metaopt.metrics.binary import auroc, brier, kappa
from metaopt.metrics.calibration import CalibratedJudge
from metaopt.problems.template_evolution.candidates import Candidate, arrays
from metaopt.problems.template_evolution.criteria_judge import CriteriaJudge
from metaopt.problems.template_evolution.objectives import alignment, outer_loss
from metaopt.problems.template_evolution.report_files import write_report
from metaopt.problems.template_evolution.scoring import Scoring, WrittenScore, mean_mass
from metaopt.report.judge_report import Judged, too_few

if TYPE_CHECKING:
    from metaopt.problems.template_evolution.calibration import JudgeCalibration
    from metaopt.problems.template_evolution.evolution import TemplateEvolution

Scores = list[float | None]


class EvolutionReport(Report):
    """The calibrated judge of the best template, and what the run has spent."""

    def __init__(self, problem: TemplateEvolution) -> None:
        self.problem = problem

    def snapshot(self, outer: str, inner: dict[str, Any]) -> dict[str, Any]:
        """Return the best template so far."""
        return {"best": outer}

    def deliver(self, outer: str, inner: dict[str, Any], snapshots: Snapshots, folder: Path) -> str:
        """Write the calibrated judge with its report; return what a person wants to know first.

        The examples are those of the task's examination, or, of a task of unknown truth, the
        candidates of the last run, where the search has had nothing of every second query.
        """
        problem, first = self.problem, self.problem.task.template
        if problem.panel.outcome_is_score:
            written = (
                "no calibrated judge: prompts were ranked by the checker's outcome, without a judge"
            )
        elif len(problem.task.queries) < 2:
            written = "no calibrated judge: it takes two queries, one to fit and one to measure on"
        else:
            examples = [
                problem.examine(t) or problem.panel.judge(t, inner["log"]) for t in (first, outer)
            ]
            fitting, testing = ([_examples(log, side) for log in examples] for side in (0, 1))
            provenance = {
                "models": {role: lm.model for role, lm in problem.client.lms.items()},
                "authorisation": dict(problem.records.authorisation or {}),
                "fitted on": f"{len(fitting[0].outcomes)} responses to every second query",
                "held out": f"{len(testing[0].outcomes)} responses to the others",
                **scored_by(problem.scoring, mean_mass(c.get("mass") for c in inner["log"])),
            }
            tried = [*inner["tried"], problem.trial(inner)]
            written = calibrate(
                folder, (first, outer), fitting, testing, tried, provenance,
                objective=problem.objective, best=[(step, s["best"]) for step, s in snapshots],
                scoring=problem.scoring.to_dict(),
            )  # fmt: skip
        return summary(problem.client, first, outer, written)


class CalibrationReport(Report):
    """The calibrated judge, measured on the held-out questions."""

    def __init__(self, problem: JudgeCalibration) -> None:
        self.problem = problem

    def deliver(self, outer: str, inner: dict[str, Any], snapshots: Snapshots, folder: Path) -> str:
        """Write the judge; return the templates, their worth, the calls and the paths."""
        problem, tried, templates = self.problem, inner["tried"], (self.problem.template, outer)
        labelled, test = problem.labelled, problem.test
        judge = problem.client.lms["judge"]
        written = calibrate(
            folder, templates,
            [_solutions(labelled, problem.score(t, labelled)) for t in templates],
            [_solutions(test, problem.examine(t)) for t in templates],
            tried,
            {
                "data": problem.data.source,
                "models": {role: lm.model for role, lm in problem.client.lms.items()},
                "seed of the split": problem.seed,
                "searched and fitted on": _counted(labelled, ""),
                "held out": _counted(test, "other "),
                "left out as ambiguous": f"{problem.data.ambiguous:,} responses",
                **scored_by(problem.scoring, inner["mass"]),
            },
            objective=problem.objective, best=_best_so_far(tried), seed=problem.seed,
            criteria=judge.criteria.to_dict() if isinstance(judge, CriteriaJudge) else None,
            scoring=problem.scoring.to_dict(),
        )  # fmt: skip
        return summary(problem.client, *templates, written, self._measured(outer))

    def _measured(self, best: str) -> list[str]:
        before, after = (held_out_metrics(self.problem, t) for t in (self.problem.template, best))
        same = best == self.problem.template
        lines = [f"held out, {'first template' if same else 'first -> best template'}:"]
        few = too_few(len({x.query for x in self.problem.test}))
        lines += [few] if few else []
        shares = [f"{100 * side['coverage']:.3g} %" for side in (before, after)]
        on = shares[0] if same else " -> ".join(shares)
        partial = min(before["coverage"], after["coverage"]) < 1
        beside = f"  on the {on} of responses with a score" if partial else ""
        for name in ("auroc", "brier", "calibrated_brier", "kappa", "alignment", "success"):
            if name in before and name in after:
                change = "" if same else f" -> {after[name]:.3f}"
                lines.append(f"    {name:<18}{before[name]:.3f}{change}{beside}")
        return lines


def calibrate(
    folder: Path,
    templates: tuple[str, str],
    fitting: Sequence[Judged],
    testing: Sequence[Judged],
    tried: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    best: Sequence[tuple[int, str]],
    **options: Any,
) -> str:
    """Calibrate the first and the best template, write judge and report, and say where.

    Args:
        folder: of the run.
        templates: the first and the best.
        fitting, testing: examples under each of them.
        tried: template, loss and coverage of the trial of each outer step.
        provenance, options: see `write_report`.
        best: (outer step, best template so far), at the steps where it is known.
    """
    try:
        judges = [
            CalibratedJudge.fit(template, x.scores, x.outcomes, (LOW, HIGH))
            for template, x in zip(templates, fitting, strict=True)
        ]
        write_report(
            folder, judges, testing,
            [(step, float(trial["loss"])) for step, trial in enumerate(tried, 1)], provenance,
            weights=_weights(best), coverage=min((t["coverage"] for t in tried), default=None),
            **options,
        )  # fmt: skip
    except ValueError as reason:
        return f"no calibrated judge: {reason}"
    return f"calibrated judge: {folder / 'judge.json'}, report: {folder / 'report.html'}"


def scored_by(scoring: Scoring, mass: float | None) -> dict[str, Any]:
    """Return how a judge that does not write its score gives it, for the provenance."""
    if isinstance(scoring, WrittenScore):
        return {}
    fields: dict[str, Any] = {"scoring": scoring.to_dict()}
    return fields if mass is None else {**fields, "probability of all choices together": mass}


def summary(
    client: Client, first: str, best: str, written: str, measured: Sequence[str] = ()
) -> str:
    """Return what was spent by role, both templates, what was measured, and where the judge is."""
    calls = ", ".join(f"{role} {client.spent(role)['lm_calls']:,.0f}" for role in client.lms)
    total = client.spent()
    return "\n".join(
        [
            f"calls: {total['lm_calls']:,.0f} ({calls}); tokens: {total['tokens']:,.0f}",
            *client.failures(),
            "first template:",
            _indented(first),
            *(["best template:", _indented(best)] if best != first else []),
            *(["best template: the first one"] if best == first else []),
            *measured,
            written,
        ]
    )


HELD_OUT = (
    "coverage", "success", "random_success", "oracle_success", "auroc", "brier", "alignment",
    "calibrated_brier", "kappa",
)  # fmt: skip
"""What a template may be worth on held-out examples."""


def held_out_metrics(problem: JudgeCalibration, template: str) -> dict[str, float]:
    """Return what a template is worth on the held-out examples, where it is defined.

    `brier` and `alignment` read a score as a probability, as the objectives do;
    `calibrated_brier` and `kappa` are those of the map and the threshold fitted on the labelled
    examples. `success` is the success rate of the best-scored response of each question,
    `random_success` that of a random one, `oracle_success` that of the best one.
    """
    scores, test = problem.examine(template), problem.test
    outcomes = [int(x.outcome) for x in test]
    p, y = scored(scores, test)
    metrics: dict[str, float | None] = {
        "coverage": len(p) / len(scores),
        "success": best_of(scores, test),
        "random_success": best_of([0.0] * len(scores), test),
        "oracle_success": best_of(outcomes, test),
    }
    if len(p):
        metrics["auroc"] = auroc(p, y)
        metrics["brier"] = outer_loss("brier", p, y)
        metrics["alignment"] = alignment(p, y)
    fitting = _solutions(problem.labelled, problem.score(template, problem.labelled))
    try:
        judge = CalibratedJudge.fit(template, fitting.scores, fitting.outcomes, (LOW, HIGH))
    except ValueError:  # too few examples have a score
        pass
    else:
        metrics["calibrated_brier"] = brier(judge.probability(scores), outcomes)
        metrics["kappa"] = kappa(judge.decide(scores), outcomes)
    return {name: float(value) for name, value in metrics.items() if value is not None}


def scored(scores: Scores, examples: Sequence[Solution]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as probabilities in [0, 1], and outcomes in {0, 1}, of the scored examples."""
    pairs = zip(scores, examples, strict=True)
    return arrays([{"score": s, "outcome": x.outcome} for s, x in pairs if s is not None])


def best_of(scores: Sequence[float | None], examples: Sequence[Solution]) -> float:
    """Return the success rate of the best-scored response of each question.

    Equal scores share the pick; a response without a score is picked where no other has one.
    """
    by_query: dict[int, list[tuple[float, bool]]] = {}
    for score, example in zip(scores, examples, strict=True):
        rank = -np.inf if score is None else score
        by_query.setdefault(example.query, []).append((rank, example.outcome))
    picked = [
        best_of_n([[s for s, _ in responses]], [[y for _, y in responses]], [len(responses)])
        for responses in by_query.values()
    ]
    return float(np.mean(picked))


def write_transcripts(client: Client, log: Sequence[Candidate], folder: Path, number: int) -> Path:
    """Write the candidates of a round with their texts into `transcripts/`, for the owner alone."""
    path = folder / "transcripts" / f"round_{number:04d}.jsonl"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with open(path, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        for c in log:
            texts = {name: client.text(c[name]) for name in ("prompt", "response")}
            file.write(json.dumps({**c, **texts}) + "\n")
    return path


def _examples(log: Sequence[Candidate], side: int) -> Judged:
    """Return the candidates with an outcome of every second query."""
    chosen = [c for c in log if c["outcome"] is not None and c["query"] % 2 == side]
    return Judged(
        [c["query"] for c in chosen],
        [int(c["outcome"]) for c in chosen],
        [c["score"] for c in chosen],
    )


def _solutions(examples: Sequence[Solution], scores: Scores) -> Judged:
    return Judged([x.query for x in examples], [int(x.outcome) for x in examples], scores)


def _counted(examples: Sequence[Solution], other: str) -> str:
    queries = len({x.query for x in examples})
    return f"{len(examples):,} responses to {queries:,} {other}queries"


def _best_so_far(tried: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    templates: list[tuple[int, str]] = []
    best = tried[0] if tried else {}
    for step, trial in enumerate(tried, 1):
        best = trial if trial["loss"] < best["loss"] else best
        templates.append((step, best["template"]))
    return templates


def _weights(templates: Sequence[tuple[int, str]]) -> list[tuple[int, Mapping[str, float]]] | None:
    """Return the weights of rubrics, by outer step; `None` for other templates."""
    try:
        return [(step, parse(template).weights) for step, template in templates]
    except ValueError:
        return None


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
