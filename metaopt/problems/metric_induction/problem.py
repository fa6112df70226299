"""Metrics induced from people's feedback on an agent, chosen by coverage and redundancy.

The inner level rates every trajectory on every metric and matches the ratings to what people said;
the outer level writes metrics for what nothing was matched to. Zhu et al., AutoLibra, ICLR
2026, arXiv 2505.02820.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import Generator

from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.llm import LM, Client, Parameters, Reply, Request
from metaopt.metrics.traits import TraitCounts
from metaopt.problems.metric_induction.data import FeedbackData, Instance, KnownBehaviours
from metaopt.problems.metric_induction.first_sets import first_set
from metaopt.problems.metric_induction.measuring import (
    UNDERSTOOD,
    Measured,
    Measuring,
    not_understood,
)
from metaopt.problems.metric_induction.metric_set import canonical, parse
from metaopt.problems.metric_induction.prompts import Aspect, read_rewrite, rewriting
from metaopt.problems.metric_induction.report import MetricReport
from metaopt.problems.metric_induction.truth import aspects_rand, behaviours_found
from metaopt.problems.text import TextProblem, TextTrial, ask, whole

MeasuredOn = Literal["held_out", "induction"]
ROLES = ("extractor", "judge", "grounder", "rewriter")
PARTS = ("induction", "held_out", "test")
ATTEMPTS = 3
"""Most answers of the rewriter that are asked for until one holds a set of metrics."""


class MetricInduction(TextProblem):
    """Inner: ratings on the metrics, matched to feedback. Outer: the set of metrics.

        F(metrics) = -(coverage - redundancy_weight * redundancy)   on held-out feedback

    Coverage is the share of the aspects of feedback (a behaviour, praised or criticised) that are
    matched to a trait (a metric rated +1 or -1) of the same sign; redundancy the share of traits
    that are matched to none; both in [0, 1]. See `metaopt.metrics.traits`.

    The trajectories are split in three: the rewriter is shown uncovered aspects and unmatched
    traits of the induction part, F is measured on the held-out part, and `metrics` are of the test
    part, which nothing is chosen on. `propose` is for `metaopt.optimizers.Search`. The rule of the
    authors' release is measured_on="induction", redundancy_weight=0, shows_unmatched=False,
    until_coverage_falls=True, and `Search(accept="always")`: metrics are added, never dropped, as
    long as the coverage of the feedback that they are made from does not fall.

    The empty set has the worst value that there is, F = redundancy_weight, so that a search leaves
    it: it has no redundancy, and a few metrics have more of it than coverage.

    A set of which less than half of a role's replies are understood has the loss +inf; the first
    one of a run that has metrics stops it with an error, and so does a rewriter that writes none of
    the three times it is asked for the first ones. A spent budget or a policy's refusal ends the
    run after its step.

    Args:
        data: trajectories with feedback.
        client: makes the client from the roles, as `functools.partial(Client, ...)`.
        roles: language models by role: extractor (aspects of feedback), judge (ratings), grounder
            (which trait says what an aspect says), rewriter (new metrics).
        model: plays every role that neither `roles` nor the data have a model for.
        first: the first set, one of "none", "aspects" (one metric for each aspect), "k_means" (of
            the aspects' words, by scikit-learn), "planted" (of a world), its text, or the path of a
            file with it, such as the `metrics.txt` of a run.
        measured_on: part that F is measured on, "held_out" or "induction".
        redundancy_weight: lambda, >= 0.
        new_metrics: metrics that a rewrite may add, >= 1.
        most: metrics that a set may have, >= 1.
        aspects_in_context: uncovered aspects that the rewriter is shown, >= 1, drawn again for each
            rewrite.
        shows_unmatched: tell it how many traits of each metric are unmatched; it may then drop
            metrics.
        until_coverage_falls: end the run when the coverage of the induction part falls, or is 1.
        induction: share of the trajectories that metrics are made from, in (0, 1).
        held_out: share that F is measured on, in (0, 1); the others are the test part.
        clusters: of k-means, >= 1.
        temperature: of the rewriter; the other roles answer at 0.
        max_tokens: longest answer.
        seed: of the split, and of k-means.

    Raises:
        ValueError: an argument outside its range, a part without a trajectory or an aspect, a role
            without a model or an unknown one, a first set that is none, a paid role without a
            budget, or a budget too small for the aspects and one outer step.

    Cost: once, a call of the extractor for each trajectory; of an outer step, one of the judge for
    each metric that is new to the run and each trajectory of the parts measured, and one of the
    grounder for each of these trajectories, at most; up to three of the rewriter for a proposal.
    An evaluation on the test part costs as much.

    Reference: Zhu et al., AutoLibra: Agent Metric Induction from Open-Ended Human Feedback,
    ICLR 2026, arXiv 2505.02820.
    """

    metric_names = (
        "coverage", "redundancy", "coverage_less_redundancy", "metrics", "precision", "recall",
        "aspects_rand",
    )  # fmt: skip

    def __init__(
        self,
        data: FeedbackData,
        client: Callable[[Mapping[str, LM]], Client] = Client,
        roles: Mapping[str, LM] | None = None,
        model: LM | None = None,
        *,
        first: str = "none",
        measured_on: MeasuredOn = "held_out",
        redundancy_weight: float = 1.0,
        new_metrics: int = 4,
        most: int = 20,
        aspects_in_context: int = 32,
        shows_unmatched: bool = True,
        until_coverage_falls: bool = False,
        induction: float = 0.34,
        held_out: float = 0.33,
        clusters: int = 8,
        temperature: float = 1.0,
        max_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        self.data, self.first, self.measured_on = data, first, measured_on
        self.redundancy_weight, self.new_metrics, self.most = redundancy_weight, new_metrics, most
        self.aspects_in_context, self.shows_unmatched = aspects_in_context, shows_unmatched
        self.until_coverage_falls, self.clusters, self.seed = until_coverage_falls, clusters, seed
        self.induction, self.held_out = induction, held_out
        check_choices(self, measured_on=get_args(MeasuredOn))
        check_ranges(
            self, "redundancy_weight >= 0", "new_metrics >= 1", "most >= 1",
            "aspects_in_context >= 1", "0 < induction < 1", "0 < held_out < 1", "clusters >= 1",
        )  # fmt: skip
        super().__init__(client(_roles(data, roles or {}, model)))
        self.parts = _split(data.instances, induction, held_out, seed)
        self.measuring = Measuring(self.client, Parameters(0.0, max_tokens))
        self.creative = Parameters(temperature, max_tokens)
        self.report = MetricReport(self)
        if first not in ("aspects", "k_means"):  # which are known when the feedback has been read
            self._first = first_set(first, data, (), clusters, seed)
        self._aspects: dict[str, list[tuple[Aspect, ...]]] = {}
        self.client.require(self._calls())

    def init_outer(self, generator: Generator) -> str:
        """Return the first set of metrics."""
        if self.first in ("aspects", "k_means"):
            aspects = [a for said in self.aspects("induction") for a in said]
            self._first = first_set(self.first, self.data, aspects, self.clusters, self.seed)
        return self._first

    def init_inner(self, outer: str, inner: dict[str, Any] | None, key: int) -> dict[str, Any]:
        """Return the start of an inner run, with what the run's earlier sets were worth."""
        number = inner["number"] + 1 if inner else 1
        self.client.begin(number)
        return {"number": number, "history": inner["history"] if inner else [], "measured": {}}

    def inner_step(self, outer: str, inner: dict[str, Any], key: int) -> dict[str, Any]:
        """Return the state with ratings, matches and counts; a further step changes nothing."""
        parts = dict.fromkeys(("induction", self.measured_on))
        # An empty set asks nobody, so that the first one with metrics is what shows odd replies.
        required = not any(entry["set/metrics"] for entry in inner["history"])
        measured = {part: self.measure(outer, part, required) for part in parts}
        record = {part: {**m._asdict(), "counts": [*m.counts]} for part, m in measured.items()}
        return {**inner, "measured": record}

    def evaluate(self, outer: str, inner: dict[str, Any], key: int) -> Feedback:
        """Return F; what is uncovered and unmatched in the induction part are the artifacts."""
        measured = {part: _measured(state) for part, state in inner["measured"].items()}
        evidence, basis = measured["induction"], measured[self.measured_on]
        counts = basis.counts
        value = self.redundancy_weight * counts.redundancy - counts.coverage
        if not parse(outer):
            value = self.redundancy_weight
        understood = min(m.understood for m in measured.values())
        stop = self.client.stopped
        if stop or understood < UNDERSTOOD:
            value = float("inf")
        before = [entry["induction/coverage"] for entry in inner["history"]]
        fell = before and evidence.counts.coverage < before[-1]
        if self.until_coverage_falls and fell and not stop:
            stop = f"coverage fell from {before[-1]:.3f} to {evidence.counts.coverage:.3f}"
        if self.until_coverage_falls and evidence.counts.coverage == 1 and not stop:
            stop = "every aspect is covered"
        metrics = {"set/metrics": float(len(parse(outer))), "set/understood": understood}
        for part, m in measured.items():
            metrics[f"{part}/coverage"] = m.counts.coverage
            metrics[f"{part}/redundancy"] = m.counts.redundancy
        return Feedback(
            value + 0.0,  # so that -0.0 is 0.0
            artifacts={"matched": evidence.matched, "unmatched": evidence.unmatched},
            metrics=metrics, cost=self.client.end(inner["number"]), stop=stop,
        )  # fmt: skip

    def observe(self, outer: str, inner: dict[str, Any], feedback: Feedback) -> dict[str, Any]:
        """Return the state with the set in its history."""
        entry = {"set": outer, "loss": float(feedback.value), **feedback.metrics}
        return {**inner, "history": [*inner["history"], entry]}

    def metrics(self, outer: str, inner: dict[str, Any] | None) -> dict[str, float]:
        """Return what a set is worth on the test part.

        coverage, redundancy and their difference, the number of metrics; of a world, precision and
        recall of the planted behaviours (`truth.behaviours_found`) and the adjusted Rand index of
        the aspects (`truth.aspects_rand`). What takes answers is left out where a budget is spent
        or a policy has refused.
        """
        metrics = parse(outer)
        measured = self.measure(outer, "test")
        counts, complete = measured.counts, not self.client.stopped
        numbers = {"metrics": float(len(metrics))}
        if complete:  # else some ratings are missing, and what they would match with them
            numbers |= {
                "coverage": counts.coverage,
                "redundancy": counts.redundancy,
                "coverage_less_redundancy": counts.coverage - counts.redundancy,
            }
        if isinstance(self.data, KnownBehaviours):
            numbers |= behaviours_found(metrics, self.data, self.parts["test"])
        if isinstance(self.data, KnownBehaviours) and complete:
            rand = aspects_rand(measured.matched, self.aspects("test"), self.data)
            numbers |= {} if rand is None else {"aspects_rand": rand}
        return numbers

    def aspects(self, part: str) -> list[tuple[Aspect, ...]]:
        """Return the aspects of the feedback of a part, asked for once.

        Raises:
            ValueError: there are none.
        """
        if part not in self._aspects:
            aspects = self.measuring.aspects(self.parts[part])
            if not any(aspects) and not self.client.stopped:
                raise ValueError(
                    f"the feedback of the {part} part, {len(aspects)} trajectories, has no aspect, "
                    "so that nothing can be covered; give more rows, or another seed of the split."
                )
            self._aspects[part] = aspects
        return self._aspects[part]

    def measure(self, outer: str, part: str, required: bool = False) -> Measured:
        """Return what a set of metrics is worth on a part."""
        aspects = self.aspects(part)
        return self.measuring.measure(parse(outer), self.parts[part], aspects, required)

    def propose(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return a new set by the rewriter; the first parent's where it writes none."""
        parent = parents[0]
        metrics, aspects = canonical(parse(parent.outer)), self.aspects("induction")
        pairs = zip(aspects, parent.artifacts["matched"], strict=True)
        rows = [zip(said, row, strict=True) for said, row in pairs]
        uncovered = [aspect for row in rows for aspect, metric in row if metric < 0]
        if not uncovered and not self.shows_unmatched:
            return parent.outer
        chosen = np.random.default_rng(fold(key, "aspects")).permutation(len(uncovered))
        sample = [uncovered[i] for i in sorted(chosen[: self.aspects_in_context].tolist())]
        unmatched = self._unmatched(parent) if self.shows_unmatched else None
        counted = len(uncovered), sum(map(len, aspects))
        messages = rewriting(metrics, sample, counted, unmatched, self.new_metrics, self.most)
        odd: list[Reply] = []
        for attempt in range(ATTEMPTS):
            rollout = fold(key, "rewriter", attempt) % 2**31
            request = Request("rewriter", messages, self.creative, rollout)
            (reply,) = ask(self.client, [request])
            text = whole(reply)
            proposed = None if text is None else read_rewrite(
                text, metrics, self.shows_unmatched, self.most
            )  # fmt: skip
            if proposed is not None:
                return proposed
            odd += [] if reply is None else [reply]
        if not metrics and len(odd) == ATTEMPTS:
            raise not_understood("rewriter", 0, ATTEMPTS, odd[-1])
        return parent.outer

    def _unmatched(self, parent: TextTrial) -> dict[str, tuple[int, int]]:
        names = [metric.name for metric in parse(parent.outer)]
        counts = zip(names, parent.artifacts["unmatched"], strict=True)
        return {name: (int(count), int(of)) for name, (count, of) in counts if of}

    def _calls(self) -> dict[str, int]:
        """Return the least calls of a run of one outer step, by role."""
        measured = {part: len(self.parts[part]) for part in ("induction", self.measured_on)}
        read = {part: self.parts[part] for part in measured}
        asked = [i for part in read.values() for i in part if i.aspects is None]
        first = 0 if self.first in ("aspects", "k_means") else len(parse(self._first))
        return {"extractor": len(asked), "judge": first * sum(measured.values())}


def _split(
    instances: Sequence[Instance], induction: float, held_out: float, seed: int
) -> dict[str, list[Instance]]:
    """Return the three parts, in random order.

    A trajectory of several rows, by different people, is in one part with all of them.
    """
    rows: dict[str, list[Instance]] = {}
    for instance in instances:
        rows.setdefault(instance.trajectory, []).append(instance)
    runs = list(rows.values())
    count = len(runs)
    first, second = round(induction * count), round(held_out * count)
    sizes = (first, second, count - first - second)
    if min(sizes) < 1:
        raise ValueError(
            f"induction={induction} and held_out={held_out} of {count} different trajectories "
            f"leave {', '.join(map(str, sizes))} for induction, selection and test; each needs one."
        )
    order = np.random.default_rng(fold(seed, "split")).permutation(count).tolist()
    bounds = (0, first, first + second, count)
    return {
        part: [instance for i in order[bounds[p] : bounds[p + 1]] for instance in runs[i]]
        for p, part in enumerate(PARTS)
    }


def _measured(state: Mapping[str, Any]) -> Measured:
    """Return what `inner_step` has measured, also from a checkpoint."""
    return Measured(**{**state, "counts": TraitCounts(*state["counts"])})


def _roles(data: FeedbackData, roles: Mapping[str, LM], model: LM | None) -> dict[str, LM]:
    own = {} if model is not None else data.roles()
    lms = {**dict.fromkeys(ROLES, model), **own, **roles}
    if unknown := sorted(set(lms) - set(ROLES)):
        raise ValueError(f"roles names {unknown[0]!r}; roles are {', '.join(ROLES)}.")
    chosen = {role: lm for role, lm in lms.items() if lm is not None}
    if missing := [role for role in ROLES if role not in chosen]:
        raise ValueError(
            f"no language model plays the role {missing[0]}; give one for all roles, such as "
            f"+llm@problem.model=openai_compatible, or for one, +llm@problem.roles.{missing[0]}=..."
        )
    return chosen
