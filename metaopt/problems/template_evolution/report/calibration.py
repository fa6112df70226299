"""What a run of judge calibration hands over: numbers on other questions, the calibrated judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.data.solutions import Solution
from metaopt.engine.protocols import Report, Snapshots
from metaopt.metrics import CalibratedJudge, auroc, best_of_n, brier, kappa
from metaopt.problems.template_evolution import rubric
from metaopt.problems.template_evolution.objectives import alignment, outer_loss
from metaopt.problems.template_evolution.report.judge import HeldOut, write_report
from metaopt.problems.template_evolution.rubric import HIGH, LOW, unit

if TYPE_CHECKING:
    from metaopt.problems.template_evolution.calibration import JudgeCalibration

Scores = list[float | None]


class CalibrationReport(Report):
    """The calibrated judge with its report."""

    def __init__(self, problem: JudgeCalibration) -> None:
        self.problem = problem

    def snapshot(self, outer: str, inner: dict[str, Any]) -> dict[str, Any]:
        """Return the template tried last, its loss, and the best one so far."""
        return {**(inner["tried"][-1] if inner["tried"] else {}), "best": outer}

    def deliver(self, outer: str, inner: dict[str, Any], snapshots: Snapshots, folder: Path) -> str:
        """Write the judge; return the templates, their worth, the calls and the paths."""
        problem, tried = self.problem, inner["tried"]
        first = problem.template
        judges = [fitted(problem, template) for template in (first, outer)]
        if judges[0] is None or judges[1] is None:
            written = "no calibrated judge: too few labelled rows have a score"
        else:
            held_out = HeldOut(
                _outcomes(problem.test), [row.query for row in problem.test],
                problem.examine(first), problem.examine(outer),
            )  # fmt: skip
            write_report(
                folder, judges[0], judges[1], held_out,
                [(step, float(t["loss"])) for step, t in enumerate(tried, 1)],
                _provenance(problem),
                objective=problem.objective,
                weights=_weights(tried),
                seed=problem.seed,
            )  # fmt: skip
            written = f"calibrated judge: {folder / 'judge.json'}, report: {folder / 'report.html'}"
        return "\n".join([*_summary(problem, first, outer), written])


def held_out_metrics(problem: JudgeCalibration, template: str) -> dict[str, float]:
    """Return what a template is worth on the held-out rows; what is not defined is left out.

    `brier` and `alignment` read a score as a probability, as the objectives do;
    `calibrated_brier` and `kappa` are those of the map and the threshold fitted on the labelled
    rows. `success` is the success rate of the best-scored response of each question,
    `random_success` that of a random one, `oracle_success` that of the best one.
    """
    scores, outcomes = problem.examine(template), _outcomes(problem.test)
    known = [(s, y) for s, y in zip(scores, outcomes, strict=True) if s is not None]
    found: dict[str, float | None] = {
        "coverage": len(known) / len(scores),
        "success": best_of(scores, problem.test),
        "random_success": best_of([0.0] * len(scores), problem.test),
        "oracle_success": best_of([float(y) for y in outcomes], problem.test),
    }
    if known:
        p, y = np.array([unit(s) for s, _ in known]), np.array([y for _, y in known])
        found |= {
            "auroc": auroc(p, y),
            "brier": outer_loss("brier", p, y),
            "alignment": alignment(p, y),
        }
    judge = fitted(problem, template)
    if judge is not None:
        found |= {
            "calibrated_brier": brier(judge.probability(scores), outcomes),
            "kappa": kappa(judge.decide(scores), outcomes),
        }
    return {name: float(value) for name, value in found.items() if value is not None}


def fitted(problem: JudgeCalibration, template: str) -> CalibratedJudge | None:
    """Return the judge calibrated on the labelled rows; `None` where too few have a score."""
    scores = problem.score(template, problem.rows)
    try:
        return CalibratedJudge.fit(template, scores, _outcomes(problem.rows), (LOW, HIGH))
    except ValueError:
        return None


def best_of(scores: Sequence[float | None], rows: Sequence[Solution]) -> float:
    """Return the success rate of the best-scored response of each question.

    Equal scores share the pick; a row without a score is picked where no other has one.
    """
    by_query: dict[int, list[tuple[float, bool]]] = {}
    for score, row in zip(scores, rows, strict=True):
        known = -np.inf if score is None else score
        by_query.setdefault(row.query, []).append((known, row.outcome))
    picked = [
        best_of_n([[s for s, _ in responses]], [[y for _, y in responses]], [len(responses)])
        for responses in by_query.values()
    ]
    return float(np.mean(picked))


def _summary(problem: JudgeCalibration, first: str, best: str) -> list[str]:
    before, after = held_out_metrics(problem, first), held_out_metrics(problem, best)
    total = problem.client.spent()
    roles = ", ".join(
        f"{role} {problem.client.spent(role)['lm_calls']:,.0f}" for role in problem.client.lms
    )
    same = best == first
    worth = "first template" if same else "first -> best template"
    lines = [f"held out, {worth}:"]
    for name in ("auroc", "brier", "calibrated_brier", "kappa", "alignment", "success"):
        if name in before and name in after:
            change = "" if same else f" -> {after[name]:.3f}"
            lines.append(f"    {name:<18}{before[name]:.3f}{change}")
    return [
        f"calls: {total['lm_calls']:,.0f} ({roles}); tokens: {total['tokens']:,.0f}",
        "first template:", _indented(first),
        "best template:" if not same else "best template: the first one",
        *([] if same else [_indented(best)]),
        *lines,
    ]  # fmt: skip


def _provenance(problem: JudgeCalibration) -> dict[str, Any]:
    rows, test, data = problem.rows, problem.test, problem.data
    return {
        "data": data.source,
        "models": {role: lm.model for role, lm in problem.client.lms.items()},
        "seed of the split": problem.seed,
        "searched and fitted on": f"{len(rows):,} rows of {len({r.query for r in rows}):,} queries",
        "held out": f"{len(test):,} rows of {len({r.query for r in test}):,} other queries",
        "left out as ambiguous": f"{data.ambiguous:,} rows",
    }


def _weights(tried: Sequence[Mapping[str, Any]]) -> list[Mapping[str, float]] | None:
    """Return the weights of the best template after each step; `None` for other templates."""
    best, found = tried[0] if tried else {}, []
    try:
        for trial in tried:
            best = trial if trial["loss"] < best["loss"] else best
            found.append(rubric.parse(best["template"]).weights)
    except ValueError:
        return None
    return found


def _outcomes(rows: Sequence[Solution]) -> list[int]:
    return [int(row.outcome) for row in rows]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
