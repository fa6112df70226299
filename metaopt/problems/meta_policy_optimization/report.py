"""What a run hands over: the rubric with its history, its validity, and a report page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.engine.protocols import Report, Snapshots
from metaopt.files.writing import write_text
from metaopt.metrics.calibration import CalibratedJudge
from metaopt.problems.meta_policy_optimization.figures import Curve, draw_over_optimisation
from metaopt.problems.meta_policy_optimization.history import (
    changes,
    diff,
    history_markdown,
    item_lines,
)
from metaopt.problems.meta_policy_optimization.item_scores import read_weights
from metaopt.problems.meta_policy_optimization.saved_rubric import to_json
from metaopt.problems.meta_policy_optimization.tabular_policy import TabularPolicy
from metaopt.report.judge_report import Assessment, Judged, Words, assess
from metaopt.report.page import Block, Figure, Heading, Verbatim, markdown, page
from metaopt.report.table import Table

if TYPE_CHECKING:
    from metaopt.problems.meta_policy_optimization.problem import MetaPolicyOptimization

TITLE = "A rubric and the policy trained under it"
FIGURE = "figures/over_optimisation.png"


class RubricReport(Report):
    """The rubric in force at the end, as `rubric.md` and `rubric.json`, with `report.html`."""

    def __init__(self, problem: MetaPolicyOptimization) -> None:
        self.problem = problem

    def deliver(self, outer: str, inner: dict[str, Any], snapshots: Snapshots, folder: Path) -> str:
        """Write rubric and report; return what a person wants to know first.

        The rubric is that of the inner state, which the policy was last trained under.
        """
        problem, history = self.problem, inner["history"]
        first, last = history[0], inner["rubric"]
        measured = problem.metrics(outer, inner)
        assessment = self._assess(first, last, folder)
        provenance = {
            "models": {role: lm.model for role, lm in problem.client.lms.items()},
            "reward scale": problem.reward_scale,
            "updates of the policy": inner["updates"],
            "rewrites accepted": sum(1 for _ in changes(history)),
        }
        blocks = [
            *self._curves(inner, folder),
            *_measured(measured, problem.policy.first(inner["policy"])), Heading("Rubric"),
            _items(first, last), *_history(history),
            *_validity(assessment), Heading("Provenance"),
            Table(("what", "value"), [[k, _plain(v)] for k, v in provenance.items()]),
        ]  # fmt: skip
        write_text(folder / "rubric.json", to_json(problem, inner, assessment, provenance))
        write_text(folder / "rubric.md", history_markdown(history))
        write_text(folder / "report.md", markdown(TITLE, blocks))
        write_text(folder / "report.html", page(TITLE, blocks, folder))
        return self._summary(inner, measured, folder)

    def _curves(self, inner: Mapping[str, Any], folder: Path) -> Iterator[Block]:
        """Draw the run, and, where it costs next to nothing, training under the first rubric."""
        if not inner["curve"]:
            return
        curves = [Curve("evolving rubric", inner["curve"])]
        policy, first = self.problem.policy, inner["history"][0]
        changed = any(rubric != first for rubric in inner["history"])
        if isinstance(policy, TabularPolicy) and changed:
            curves.insert(0, Curve("first rubric, fixed", self._fixed(policy, inner)))
        if not changed:
            curves = [curves[0]._replace(name="first rubric, fixed")]
        draw_over_optimisation(curves, folder / FIGURE)
        yield Heading("Judge's score and true quality")
        yield Figure(
            FIGURE,
            "Above: the judge's mean score, as a share of the points of the rubric in force. "
            "Below: true quality, less that of the first policy. Where the score rises and the "
            "quality falls, the rubric is exploited.",
        )

    def _fixed(self, policy: TabularPolicy, inner: Mapping[str, Any]) -> list[list[float]]:
        reward = self.problem.reward(inner["history"][0])
        state, curve = policy.init(0), []
        for update in range(1, inner["updates"] + 1):
            state = policy.update(state, reward, 0)
            measured = policy.measure(state, reward)
            curve.append([update, measured["quality"], measured["score"]])
        return curve

    def _assess(self, first: str, last: str, folder: Path) -> Assessment | None:
        """Return what the first and the last rubric are worth on the fixed mixture.

        Half of its queries are for fitting, the others for measuring. A response succeeds whose
        true quality is above the mixture's median.
        """
        mixtures = [self.problem.examine(rubric) for rubric in (first, last)]
        examined = [mixture for mixture in mixtures if mixture]
        if not examined:
            return None
        queries, truth = np.array(examined[0].queries), np.array(examined[0].truth)
        outcomes = (truth > np.median(truth)).astype(int)
        fitting = queries % 2 == 0
        judges, held_out = [], []
        for rubric, examination in zip((first, last), examined, strict=True):
            most = sum(map(abs, read_weights(rubric).values()))
            scores = np.array([np.nan if p is None else p / most for p in examination.points])
            judges.append(
                CalibratedJudge.fit(rubric, scores[fitting], outcomes[fitting], (-1.0, 1.0))
            )
            held_out.append(Judged(queries[~fitting], outcomes[~fitting], scores[~fitting]))
        return assess(folder, judges, held_out, words=Words("rubric", "last"))

    def _summary(
        self, inner: Mapping[str, Any], measured: Mapping[str, float], folder: Path
    ) -> str:
        client, first, last = self.problem.client, inner["history"][0], inner["rubric"]
        calls = ", ".join(f"{role} {client.spent(role)['lm_calls']:,.0f}" for role in client.lms)
        lines = [f"calls: {calls}; tokens: {client.spent()['tokens']:,.0f}", *client.failures()]
        parts = [f"KL {measured['kl']:.1f} nats"]
        if "quality" in measured:
            peak = measured["quality"] + measured["peak_minus_final"]
            parts = [
                f"true quality, less the first policy's: {measured['quality']:+.2f} "
                f"(at its peak {peak:+.2f})",
                f"hack rate {measured['hack_rate']:.2f}", *parts,
            ]  # fmt: skip
        if "second_judge_gain" in measured:
            parts.insert(0, f"second judge, less the first policy's: "
                            f"{measured['second_judge_gain']:+.3f} of the points")  # fmt: skip
        if "length" in measured:
            first_length = self.problem.policy.first(inner["policy"])["length"]
            parts.append(f"length {measured['length']:.1f} tokens, at first {first_length:.1f}")
        lines.append("; ".join(parts))
        lines += ["first rubric:", _lines(first)]
        lines += ["last rubric:", _lines(last)] if last != first else ["last rubric: the first one"]
        return "\n".join(
            [*lines, f"rubric: {folder / 'rubric.md'}, report: {folder / 'report.html'}"]
        )


GAINS = ("quality", "second_judge_gain")
"""What is less the first policy's already."""

NAMES = {
    "quality": "true quality, less the first policy's",
    "peak_minus_final": "its highest value along the run, less the final one",
    "hack_rate": "hack rate: mean rate of an abuse",
    "kl": "KL divergence from the first policy, nats a response",
    "second_judge": "second judge: mean share of the first rubric's points",
    "second_judge_gain": "the same, less the first policy's",
    "length": "length of a response, tokens",
    "distinct": "different words, as a share of all",
    "distinct_2": "different pairs of neighbouring words, as a share of all",
    "rubric_agreement": "pairs of a fixed mixture that the rubric orders as the truth does",
    "rubric_coverage": "coverage: planted features that the rubric weighs with the right sign",
    "rubric_redundancy": "redundancy: items that weigh none of them, or with the wrong sign",
}


def _measured(measured: Mapping[str, float], first: Mapping[str, float]) -> Iterator[Block]:
    yield Heading("The trained policy")
    rows = [
        [
            NAMES[name],
            f"{first[name]:.3f}" if name in first and name not in GAINS else "",
            f"{measured[name]:.3f}",
        ]
        for name in NAMES
        if name in measured
    ]
    yield Table(("what", "first policy", "trained"), rows)
    if "quality" not in measured:
        yield (
            "Nobody knows the true quality here. A policy that exploits its judge is far from the "
            "first one (KL), often longer or more repetitive, and liked less by a judge that it "
            "was not trained under (problem.roles.second_judge). Where several of these say so, "
            "read its responses."
        )


def _validity(assessment: Assessment | None) -> Iterator[Block]:
    if assessment is not None:
        yield Heading("Validity on a fixed mixture")
        yield (
            "Half of the responses are the first policy's, half have abuses on top; none is to a "
            "query that the policy is trained on. A score is the share of the rubric's points, and "
            "a response succeeds whose true quality is above the mixture's median."
        )
        yield from assessment.blocks


def _items(first: str, last: str) -> Table:
    before, after = read_weights(first), read_weights(last)
    rows = [
        [name, *(f"{side[name]:+.2f}" if name in side else "" for side in (before, after))]
        for name in dict.fromkeys([*before, *after])
    ]
    return Table(("criterion", "points, first rubric", "points, last rubric"), rows)


def _history(history: Sequence[str]) -> Iterator[Block]:
    yield Heading("How the rubric came about")
    rewrites = list(changes(history))
    if not rewrites:
        yield "The rubric was not changed."
    for number, before, after in rewrites:
        yield f"Before inner run {number}:"
        yield Verbatim(diff(before, after))


def _lines(rubric: str) -> str:
    items = read_weights(rubric).items()
    return "\n".join(f"    {line}" for item in items for line in item_lines(*item))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    return str(value)
