"""What a set of metrics is worth on some instances: aspects, ratings, matches, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from metaopt.llm import Client, NotUnderstood, Parameters, Reply, Request
from metaopt.llm.score_replies import form
from metaopt.metrics.traits import TraitCounts, count_traits, same_sign, total
from metaopt.problems.metric_induction.data import Instance
from metaopt.problems.metric_induction.metric_set import Metric, canonical
from metaopt.problems.metric_induction.prompts import (
    Aspect,
    extracting,
    grounding,
    judging,
    read_aspects,
    read_matches,
    read_rating,
)
from metaopt.problems.text import ask, whole

UNDERSTOOD = 0.5
"""Least share of the replies to be understood; below it a set of metrics has no value."""


class Measured(NamedTuple):
    """A set of metrics on some instances.

    Args:
        counts: of all of them.
        matched: by instance and aspect, the index of the metric in the set, or -1.
        unmatched: by metric of the set, its traits that are not matched, and all of them.
        understood: share of the replies of judge and grounder that were understood.
    """

    counts: TraitCounts
    matched: list[list[int]]
    unmatched: list[tuple[int, int]]
    understood: float


class Measuring:
    """Asks extractor, judge and grounder about instances.

    A trajectory is rated on one metric at a time, so that the answer does not depend on the rest of
    the set and is not asked for again when another set has the metric. An instance whose grounding
    is not understood counts its aspects and traits as unmatched; a rating that is not, as 0.

    Args:
        client: the language models, with these three roles.
        parameters: how they answer.
    """

    def __init__(self, client: Client, parameters: Parameters) -> None:
        self.client, self.parameters = client, parameters

    def aspects(self, instances: Sequence[Instance]) -> list[tuple[Aspect, ...]]:
        """Return the aspects of each feedback; those that a row brings, as they are.

        Raises:
            NotUnderstood: less than half of three or more replies list any aspect or say that there
                is none.
        """
        asked = [i for i, instance in enumerate(instances) if instance.aspects is None]
        requests = [
            Request("extractor", extracting(instances[i].feedback), self.parameters) for i in asked
        ]
        replies = ask(self.client, requests) if requests else []
        read = [None if (text := whole(reply)) is None else read_aspects(text) for reply in replies]
        if not self.client.stopped:
            self._refuse("extractor", read, replies, "lines 'good: ...' or 'bad: ...', or 'none'")
        found = dict(zip(asked, read, strict=True))
        return [
            tuple(found[i] or ()) if instance.aspects is None else instance.aspects
            for i, instance in enumerate(instances)
        ]

    def measure(
        self,
        metrics: Sequence[Metric],
        instances: Sequence[Instance],
        aspects: Sequence[Sequence[Aspect]],
        required: bool = False,
    ) -> Measured:
        """Return what the metrics, in any order, are worth.

        Args:
            metrics: the set.
            instances: which trajectories.
            aspects: of their feedback.
            required: whether replies must be understood.

        Raises:
            NotUnderstood: they must be, and less than half of three or more of a role are.
        """
        order = canonical(metrics)
        ratings, understood = self._rate(order, instances, required)
        traits = [[(m, r) for m, r in enumerate(row) if r] for row in ratings]
        matches, grounded = self._ground(order, aspects, traits, required)
        place = [metrics.index(metric) for metric in order]
        matched, met = [], [0] * len(order)
        for said, shown, pairs in zip(aspects, traits, matches, strict=True):
            row = [-1] * len(said)
            for aspect, trait in pairs:
                row[aspect] = place[shown[trait][0]]
            for trait in {trait for _, trait in pairs}:
                met[shown[trait][0]] += 1
            matched.append(row)
        counts = total(
            count_traits([a.sign for a in said], [sign for _, sign in shown], pairs)
            for said, shown, pairs in zip(aspects, traits, matches, strict=True)
        )
        of = Counter(m for shown in traits for m, _ in shown)
        unmatched = [(0, 0)] * len(order)
        for m, target in enumerate(place):
            unmatched[target] = (of[m] - met[m], of[m])
        heard = [*understood, *grounded]
        share = sum(heard) / len(heard) if heard else 1.0
        return Measured(counts, matched, unmatched, share)

    def _rate(
        self, metrics: Sequence[Metric], instances: Sequence[Instance], required: bool
    ) -> tuple[list[list[int]], list[bool]]:
        """Return the rating by instance and metric, and which replies stated one."""
        requests = [
            Request("judge", judging(metric, instance.trajectory), self.parameters)
            for instance in instances
            for metric in metrics
        ]
        replies = ask(self.client, requests) if requests else []
        read = [None if (text := whole(reply)) is None else read_rating(text) for reply in replies]
        if required and not self.client.stopped:
            self._refuse("judge", read, replies, "a last line 'Rating: +1', '0' or '-1'")
        flat, count = [rating or 0 for rating in read], len(metrics)
        rows = [flat[i * count : (i + 1) * count] for i in range(len(instances))]
        return rows, [rating is not None for rating in read]

    def _ground(
        self,
        metrics: Sequence[Metric],
        aspects: Sequence[Sequence[Aspect]],
        traits: Sequence[Sequence[tuple[int, int]]],
        required: bool,
    ) -> tuple[list[list[tuple[int, int]]], list[bool]]:
        """Return the matches of each instance by index, and which replies stated them.

        Nothing is asked where no aspect has a trait of its sign.
        """
        asked = [
            i
            for i, (said, shown) in enumerate(zip(aspects, traits, strict=True))
            if {a.sign for a in said} & {sign for _, sign in shown}
        ]
        requests = [
            Request(
                "grounder",
                grounding(aspects[i], [(metrics[m], sign) for m, sign in traits[i]]),
                self.parameters,
            )
            for i in asked
        ]
        replies = ask(self.client, requests) if requests else []
        read = [
            None
            if (text := whole(reply)) is None
            else read_matches(text, len(aspects[i]), len(traits[i]))
            for i, reply in zip(asked, replies, strict=True)
        ]
        if required and not self.client.stopped:
            self._refuse("grounder", read, replies, "a line '<aspect>: <trait>' for each aspect")
        pairs: list[list[tuple[int, int]]] = [[] for _ in aspects]
        for i, stated in zip(asked, read, strict=True):
            named = [(a, t) for a, t in enumerate(stated or ()) if t is not None]
            signs = [a.sign for a in aspects[i]], [sign for _, sign in traits[i]]
            pairs[i] = same_sign(*signs, named)
        return pairs, [stated is not None for stated in read]

    def _refuse(
        self, role: str, read: Sequence[object], replies: Sequence[Reply | None], legal: str
    ) -> None:
        """Raise where a role does not answer what it is asked."""
        understood = sum(answer is not None for answer in read)
        if len(read) < 3 or understood >= UNDERSTOOD * len(read):
            return
        shown = next(
            (
                reply
                for answer, reply in zip(read, replies, strict=True)
                if answer is None and reply
            ),
            None,
        )
        lines = (
            "" if shown is None else "".join(f"\n    {x}" for x in form(shown.text).splitlines())
        )
        cut = shown is not None and shown.finish == "length"
        raise NotUnderstood(
            f"{role}: {understood} of {len(read)} replies were understood; they must have {legal}. "
            f"One that was not ends with (letters shown as x, digits as 9):{lines or ' nothing'}"
            + (" It is cut: raise problem.max_tokens." if cut else ""),
            role,
        )
