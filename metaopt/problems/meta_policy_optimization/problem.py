"""A rubric that evolves while a policy trains under it.

The inner level trains a policy on the reward of a judge that follows a rubric; every few updates
the outer level rewrites the rubric after reading fresh rollouts. Kim et al., Toward Evaluative
Thinking: Meta Policy Optimization with Evolving Reward Models, arXiv 2504.20157, 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.llm import LM, Client, Parameters
from metaopt.metrics.traits import PlantedFeatures, planted_counts
from metaopt.problems.meta_policy_optimization.item_scores import (
    SCALES,
    Scale,
    read_weights,
    render,
)
from metaopt.problems.meta_policy_optimization.judging import (
    Judging,
    WrittenPoints,
    not_understood,
)
from metaopt.problems.meta_policy_optimization.labels import agreement, ridge
from metaopt.problems.meta_policy_optimization.policy import (
    Examination,
    Pairs,
    Policy,
    Reward,
    State,
)
from metaopt.problems.meta_policy_optimization.report import RubricReport
from metaopt.problems.meta_policy_optimization.rewriting import Rewriter
from metaopt.problems.meta_policy_optimization.rollouts import resampled
from metaopt.problems.text import TextProblem, TextTrial

NEEDED = ("judge", "meta")
ROLES = (*NEEDED, "second_judge")


class MetaPolicyOptimization(TextProblem):
    """Inner: a policy under a rubric's reward. Outer: the rubric, rewritten after its rollouts.

        inner, warm:  inner_steps updates of the policy on r = scale * (points by the judge)
        outer:        rubric <- merge of the refinements after `rollouts` responses of these updates

    `propose` is for `metaopt.optimizers.Search(accept="always", keep="latest")`: every rewrite is
    accepted, and there is no outer value to choose by. The value told is 1 - agreement of the
    judge's points with the truth on labelled rollouts, where there are labels, else minus the
    judge's mean score, which nothing should select on: a rubric that is easily pleased has the
    highest. With labels, `screen` is a gate (a rewrite that agrees less with the labels is
    rejected, and its parent runs again), and `fit_labels` fits the weights instead of rewriting.

    The rollouts are a uniform sample of all updates since the last rewrite, not of the last batch:
    of the responses that the judge has read in them, which are not asked about again, or of fresh
    ones where an update reads none (`TabularPolicy`, `offline`). A reply that states no score is
    counted (`judge/coverage`) and enters nothing; a judge, or a meta judge, of which less than a
    tenth of the replies hold a score, or a rubric, stops the run with an error. A spent budget or a
    policy's refusal ends the run after the step it happens in; a rewrite that it cuts short keeps
    the old rubric.

    Args:
        policy: what is trained, such as `TabularPolicy`, with its first rubric.
        client: makes the client from the roles, as `functools.partial(Client, ...)`.
        roles: language models that take the place of the policy's own, by role: judge, meta; and
            second_judge, which trains nothing: it reads the responses that the policy is measured
            on under the first rubric, before training and after it. Where the judge's score rises
            and that of the second judge falls, the judge is exploited.
        rollouts: number n of responses that a rewrite is made after, >= 1; all of them where the
            updates before it have fewer.
        votes: refinements of these that must have a new item, >= 1.
        blind: show the meta judge no response (control).
        offline: make all rewrites before training, after responses of the first policy, then train
            for as many updates (control).
        reward_scale: "total" (out of 10 points), "mean" (of the items) or "sum" (the release's, in
            which a longer rubric outweighs the KL penalty).
        labels: rollouts of each inner run whose true quality is looked up, >= 0.
        first_labels: responses of the first policy whose true quality is looked up, >= 0.
        temperature: of the meta judge; the judge answers at 0.
        max_tokens: longest answer.
        inner_steps: number k of updates between rewrites, >= 1, for the estimate of costs.
        judging: how the judge is asked; `None` for `WrittenPoints(max_tokens)`.

    Raises:
        ValueError: an argument outside its range, a role without a language model or an unknown
            one, labels of a policy of unknown truth, a paid role without a budget, or a budget that
            does not last for one outer step.

    Cost: of an outer step, a call of the judge for each response of the policy's updates, or for
    each fresh rollout, and 2 `rollouts` + 1 of the meta judge, up to two more where merges hold no
    rubric; in addition, one of the judge for each label, two in a gate. The second judge takes a
    call for each response that the policy is measured on, before training and at each evaluation. A
    judge that is asked about each item (`YesNo`, `per_item`) takes as many calls as there are
    items.

    Reference: Kim et al., Toward Evaluative Thinking: Meta Policy Optimization with Evolving Reward
    Models, arXiv 2504.20157, 2025.
    """

    def __init__(
        self,
        policy: Policy,
        client: Callable[[Mapping[str, LM]], Client] = Client,
        roles: Mapping[str, LM] | None = None,
        rollouts: int = 16,
        votes: int = 1,
        blind: bool = False,
        offline: bool = False,
        reward_scale: Scale = "total",
        labels: int = 0,
        first_labels: int = 0,
        temperature: float = 0.02,
        max_tokens: int = 1024,
        inner_steps: int = 20,
        judging: Judging | None = None,
    ) -> None:
        self.policy, self.rollouts, self.votes = policy, rollouts, votes
        self.blind, self.offline, self.reward_scale = blind, offline, reward_scale
        self.labels, self.first_labels, self.inner_steps = labels, first_labels, inner_steps
        check_choices(self, reward_scale=SCALES)
        check_ranges(
            self, "rollouts >= 1", "1 <= votes <= rollouts", "labels >= 0", "first_labels >= 0",
            "inner_steps >= 1",
        )  # fmt: skip
        if (labels or first_labels) and policy.truth is None:
            raise ValueError(
                f"labels need a policy whose truth is known; {type(policy).__name__} has none. "
                "Use labels=0 and first_labels=0."
            )
        super().__init__(client(_roles(policy, roles or {})))
        self.judging = judging or WrittenPoints(max_tokens)
        self._own_judge = "judge" not in (roles or {})
        written = isinstance(self.judging, WrittenPoints) and not self.judging.per_item
        if self._own_judge and not written:
            raise ValueError(
                "problem.judging asks a language model about each item, and the policy's own judge "
                "is none; give one, such as +llm@problem.roles.judge=transformers, or leave "
                "problem.judging out."
            )
        self.rewriter = Rewriter(self.client, votes, Parameters(temperature, max_tokens))
        self.report = RubricReport(self)
        self._reuses = policy.judged > 0 and not offline
        read = inner_steps * policy.judged
        shown = min(rollouts, read) if self._reuses else rollouts
        each = self.judging.calls(policy.rubric)
        calls = {"judge": (read if self._reuses else read + rollouts) * each, "meta": 2 * shown + 1}
        self._second_judge = "second_judge" in self.client.lms
        if self._second_judge:
            calls["second_judge"] = 2 * policy.evaluation * each
        self.client.require(calls)

    def init_outer(self, generator: Any) -> str:
        """Return the first rubric."""
        return self.policy.rubric

    def init_inner(self, outer: str, inner: Mapping[str, Any] | None, key: int) -> dict[str, Any]:
        """Return the policy as the last run left it, under the new rubric; the first one at first.

        `samples` are (update, query, reference of a response); `curve` has (updates, quality,
        judge's score) of the whole run where the truth is known; `labelled` (query, reference,
        quality).
        """
        number = inner["round"] + 1 if inner else 1
        self.client.begin(number)
        if inner is None:
            state = self.policy.init(fold(key, "policy"))
            first = self.policy.sample(state, self.first_labels, fold(key, "labels"))
            inner = {
                "policy": state, "updates": 0, "curve": [], "history": [],
                "labelled": self._looked_up(first),
            }  # fmt: skip
            measured = self._measure(state, outer) if self._second_judge else {}
            inner["first_second_judge"] = measured.get("second_judge")
        else:
            inner = {**inner, "labelled": self.labelled(inner)}
        history = [*inner["history"], outer]
        run = {"round": number, "rubric": outer, "steps": 0, "samples": [], "history": history}
        return {**inner, **run}

    def inner_step(self, outer: str, inner: dict[str, Any], key: int) -> dict[str, Any]:
        """Return the state after one update of the policy; unchanged once the client stopped."""
        if self.client.stopped:
            return inner
        draw = fold(key, "samples")
        before = inner["samples"] if self._reuses else self._sampled(inner, draw)
        stepped = {**inner, "steps": inner["steps"] + 1, "samples": before}
        if self.offline:
            return stepped
        updated, responses = self._updated(stepped, fold(key, "update"))
        if responses:
            fresh = [[inner["updates"], q, self.client.keep(text)] for q, text in responses]
            seen, count = inner["steps"] * len(fresh), max(self.rollouts, self.labels)
            updated["samples"] = resampled(before, fresh, seen, count, draw)
        return updated

    def evaluate(self, outer: str, inner: dict[str, Any], key: int) -> Feedback:
        """Return what the judge says of the rollouts, which are the artifacts with their points."""
        rubric = inner["rubric"]
        weights = read_weights(rubric)
        shown = [(query, self.client.text(ref)) for _, query, ref in inner["samples"]]
        points = self.points(rubric, shown[: self.rollouts])
        most = sum(map(abs, weights.values()))
        scores = [p / most for p in points if p is not None]
        if len(points) >= 3 and 10 * len(scores) < len(points) and not self.client.stopped:
            raise not_understood(len(scores), len(points), self.judging)
        labelled = self.labelled(inner)
        agreed = self._agreement(rubric, labelled)
        numbers = {
            "judge/coverage": len(scores) / max(len(points), 1),
            "judge/labels": float(len(labelled)),
            "rubric/items": float(len(weights)),
            "rubric/points": most,
            **self.policy.last(inner["policy"]),
        }
        if scores:
            numbers["judge/score"] = float(np.mean(scores))
        if agreed is not None:
            numbers["judge/agreement"] = agreed
        value = float("inf") if not scores else -float(np.mean(scores))
        artifacts = {
            "round": inner["round"], "labelled": labelled,
            "samples": [[*s, p] for s, p in zip(inner["samples"], points, strict=False)],
        }  # fmt: skip
        return Feedback(
            value if agreed is None else 1 - agreed, artifacts=artifacts, metrics=numbers,
            cost=self.client.end(inner["round"]), stop=self.client.stopped,
        )  # fmt: skip

    def finish(self, outer: str, inner: dict[str, Any], key: int) -> dict[str, Any]:
        """Return the state after the training that `offline` has put off."""
        if self.offline:
            for step in range(inner["round"] * inner["steps"]):
                inner, _ = self._updated(inner, fold(key, step))
        return inner

    def metrics(self, outer: str, inner: dict[str, Any]) -> Mapping[str, float]:
        """Return what the policy is worth, and the rubric in force, as far as that is known.

        See `Policy.measure` of the policy; second_judge_gain is less the first policy's. Where the
        truth is known: peak_minus_final of the quality, and rubric_agreement; of a world with
        planted features, rubric_coverage and rubric_redundancy (`planted_counts`).
        """
        numbers = self._measure(inner["policy"], inner["rubric"])
        numbers.pop("score", None)  # of the run's judge, which the curve has
        first = inner.get("first_second_judge")  # older checkpoints have none
        if first is not None and "second_judge" in numbers:
            numbers["second_judge_gain"] = numbers["second_judge"] - first
        if self.policy.truth is not None:
            quality = numbers["quality"]
            numbers["peak_minus_final"] = (
                max([quality, *(q for _, q, _ in inner["curve"])]) - quality
            )
        if mixture := self.examine(inner["rubric"]):
            agreed = agreement(mixture.points, mixture.truth)
            numbers["rubric_agreement"] = 0.5 if agreed is None else agreed
        if isinstance(self.policy.truth, PlantedFeatures):
            items = read_weights(inner["rubric"])
            counts = planted_counts(self.policy.truth.planted, items)
            numbers["rubric_coverage"] = counts.coverage
            numbers["rubric_redundancy"] = counts.redundancy
        return numbers

    def examine(self, rubric: str) -> Examination | None:
        """Return a fixed mixture of responses with the points of the policy's own judge.

        `None` where the truth is not known, or another judge reads the rubric, whose answers would
        be a charge.
        """
        if self.policy.truth is not None and self._own_judge:
            return self.policy.truth.examine(rubric)
        return None

    def propose(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return the rubric that the meta judge makes of the first parent's, after its rollouts."""
        rubric, samples = parents[0].outer, parents[0].artifacts["samples"]
        shown = [
            (self.policy.queries[query], None if self.blind else self.client.text(ref), points)
            for _, query, ref, points in samples
        ]
        return self.rewriter(rubric, shown, key)

    def screen(self, candidate: str, trials: Sequence[TextTrial]) -> float:
        """Return 1 - agreement with the labels; +inf where the rubric in force agrees better.

        Raises:
            ValueError: there are no labels.
        """
        latest = max(trials, key=lambda trial: trial.artifacts["round"])
        labelled = _required(latest.artifacts["labelled"])
        new, old = (self._agreement(rubric, labelled) for rubric in (candidate, latest.outer))
        if self.client.stopped or new is None or (old is not None and new < old):
            return float("inf")
        return 1 - new

    def fit_labels(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return the rubric whose weights fit the labels best: a control without rewriting.

        The judge reads every criterion that it knows of every labelled response; see
        `labels.ridge`.

        Raises:
            ValueError: there are no labels.
        """
        labelled = _required(parents[0].artifacts["labelled"])
        criteria = list(read_weights(parents[0].outer))
        if self.policy.truth is not None:
            criteria = list(self.policy.truth.criteria)
        readings = self.judge(render(dict.fromkeys(criteria, 1.0)), self._texts(labelled))
        if self.client.stopped or all(reading is None for reading in readings):
            return parents[0].outer
        return render(ridge(readings, [truth for *_, truth in labelled], criteria))

    def judge(
        self, rubric: str, pairs: Pairs, role: str = "judge"
    ) -> list[dict[str, float] | None]:
        """Return the points of each item for (query, response) pairs; `None` without a score."""
        texts = [(self.policy.queries[query], response) for query, response in pairs]
        return self.judging(self.client, rubric, texts, role)

    def points(self, rubric: str, pairs: Pairs, role: str = "judge") -> list[float | None]:
        """Return the sum of the points of (query, response) pairs; `None` without a score."""
        scores = self.judge(rubric, pairs, role)
        return [None if each is None else sum(each.values()) for each in scores]

    def reward(self, rubric: str) -> Reward:
        """Return the reward of a rubric."""
        return Reward(rubric, self.reward_scale, self.points)

    def _measure(self, state: State, rubric: str) -> dict[str, float]:
        second = None
        if self._second_judge:
            second = Reward(self.policy.rubric, self.reward_scale, self._second_points)
        return self.policy.measure(state, self.reward(rubric), second)

    def _second_points(self, rubric: str, pairs: Pairs) -> list[float | None]:
        points = self.points(rubric, pairs, "second_judge")
        if self.client.stopped and None in points:  # for want of calls: the rest is no fair sample
            return [None] * len(points)
        return points

    def labelled(self, inner: Mapping[str, Any]) -> list[list[Any]]:
        """Return the labelled responses of a run so far: query, reference, quality."""
        fresh = [(query, self.client.text(ref)) for _, query, ref in inner["samples"]]
        return [*inner["labelled"], *self._looked_up(fresh[: self.labels])]

    def _updated(self, inner: dict[str, Any], key: int) -> tuple[dict[str, Any], Pairs]:
        """Return the state after an update, and the responses that the judge has read in it."""
        read: list[tuple[int, str]] = []

        def judge(rubric: str, pairs: Pairs) -> list[float | None]:
            read.extend(pairs)
            return self.points(rubric, pairs)

        reward, updates = self.reward(inner["rubric"]), inner["updates"] + 1
        state = self.policy.update(inner["policy"], replace(reward, judge=judge), key)
        if self.client.stopped:  # some responses have a score and some have none for want of calls
            return inner, []
        point = self.policy.progress(state, reward)
        curve = [*inner["curve"], [updates, *point]] if point else inner["curve"]
        return {**inner, "policy": state, "updates": updates, "curve": curve}, read

    def _sampled(self, inner: Mapping[str, Any], key: int) -> list[list[Any]]:
        """Return a uniform sample of fresh rollouts of all policies since the last rewrite.

        In step t each place of the sample takes a response of this update with probability 1 / t,
        so that it holds one of any update as likely, however many there will be.
        """
        count = max(self.rollouts, self.labels)
        replaced = np.random.default_rng(key).random(count) * (inner["steps"] + 1) < 1
        fresh = iter(self.policy.sample(inner["policy"], int(replaced.sum()), fold(key, "policy")))
        samples = inner["samples"] or [None] * count
        drawn = [next(fresh) if new else None for new in replaced]
        return [
            old if new is None else [inner["updates"], new[0], self.client.keep(new[1])]
            for old, new in zip(samples, drawn, strict=True)
        ]

    def _looked_up(self, pairs: Pairs) -> list[list[Any]]:
        truth = self.policy.truth
        if truth is None:
            return []
        queries = self.policy.queries
        return [
            [q, self.client.keep(text), truth.true_quality(queries[q], text)] for q, text in pairs
        ]

    def _texts(self, labelled: Sequence[Sequence[Any]]) -> list[tuple[int, str]]:
        return [(query, self.client.text(ref)) for query, ref, _ in labelled]

    def _agreement(self, rubric: str, labelled: Sequence[Sequence[Any]]) -> float | None:
        """Return the agreement of the judge's points with the labels; `None` without labels."""
        if not labelled:
            return None
        return agreement(self.points(rubric, self._texts(labelled)), [t for *_, t in labelled])


def _required(labelled: list[list[Any]]) -> list[list[Any]]:
    if not labelled:
        raise ValueError(
            "a gate, and weights fitted to labels, need labels: set problem.labels (of the "
            "rollouts of each inner run) or problem.first_labels (of the first policy)."
        )
    return labelled


def _roles(policy: Policy, roles: Mapping[str, LM]) -> dict[str, LM]:
    policy.check(roles)
    lms = {**policy.roles(), **roles}
    unknown = sorted(set(lms) - set(ROLES))
    if unknown:
        raise ValueError(f"roles names {unknown[0]!r}; roles are {', '.join(ROLES)}.")
    missing = [role for role in NEEDED if role not in lms]
    if missing:
        raise ValueError(
            f"no language model plays the role {missing[0]}; give one, such as "
            f"+llm@problem.roles.{missing[0]}=openai_compatible."
        )
    return lms
