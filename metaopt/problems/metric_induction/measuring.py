"""What a set of metrics is worth on some instances: aspects, ratings, matches, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from metaopt.llm import Client, NotUnderstood, Parameters, Reply, Request
from metaopt.llm.chat import Message
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

LEGAL = {
    "extractor": "lines 'good: ...' or 'bad: ...', or 'none'",
    "judge": "a last line 'Rating: +1', '0' or '-1'",
    "grounder": "a line '<aspect>: <trait>' for each aspect",
    "rewriter": 'whole blocks <metric name="...">...</metric>, each of another name',
}

UNDERSTOOD = 0.5
"""Least share of the replies to be understood; below it a set of metrics has no value."""


class Measured(NamedTuple):
    """A set of metrics on some instances.

    Args:
        counts: of all of them.
        matched: by instance and aspect, the index of the metric in the set, or -1.
        unmatched: by metric of the set, its traits that are not matched, and all of them.
        understood: share of the replies of judge or grounder, whichever is smaller, that were
            understood.
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
        self._known: dict[tuple[str, str], Any] = {}  # what the client would answer again

    def aspects(self, instances: Sequence[Instance]) -> list[tuple[Aspect, ...]]:
        """Return the aspects of each feedback; those that a row brings, as they are.

        Raises:
            NotUnderstood: less than half of three or more replies list any aspect or say that there
                is none.
        """
        asked = [instance for instance in instances if instance.aspects is None]
        questions = [Question(extracting(i.feedback), read_aspects) for i in asked]
        read = iter(self._ask("extractor", questions, True))
        return [
            tuple(next(read) or ()) if instance.aspects is None else instance.aspects
            for instance in instances
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
        ratings, rated = self._rate(order, instances, required)
        traits = [[(m, sign) for m, sign in enumerate(row) if sign] for row in ratings]
        matches, grounded = self._ground(order, aspects, traits, required)
        place = [metrics.index(metric) for metric in order]
        matched = [[-1] * len(said) for said in aspects]
        met: Counter[int] = Counter()
        for row, shown, pairs in zip(matched, traits, matches, strict=True):
            for aspect, trait in pairs:
                row[aspect] = place[shown[trait][0]]
            met.update(place[shown[trait][0]] for trait in {trait for _, trait in pairs})
        of = Counter(place[m] for shown in traits for m, _ in shown)
        counts = total(
            count_traits([a.sign for a in said], [sign for _, sign in shown], pairs)
            for said, shown, pairs in zip(aspects, traits, matches, strict=True)
        )
        understood = min(sum(read) / len(read) if read else 1.0 for read in (rated, grounded))
        return Measured(
            counts,
            matched,
            [(of[m] - met[m], of[m]) for m in range(len(metrics))],
            understood,
        )

    def _rate(
        self, metrics: Sequence[Metric], instances: Sequence[Instance], required: bool
    ) -> tuple[list[list[int]], list[bool]]:
        """Return the rating by instance and metric, and which replies stated one."""
        questions = [
            Question(judging(metric, instance.trajectory), read_rating)
            for instance in instances
            for metric in metrics
        ]
        read = self._ask("judge", questions, required)
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
        questions = [
            Question(
                grounding(aspects[i], [(metrics[m], sign) for m, sign in traits[i]]),
                partial(read_matches, aspects=len(aspects[i]), traits=len(traits[i])),
            )
            for i in asked
        ]
        read = self._ask("grounder", questions, required)
        pairs: list[list[tuple[int, int]]] = [[] for _ in aspects]
        for i, stated in zip(asked, read, strict=True):
            named = [(a, t) for a, t in enumerate(stated or ()) if t is not None]
            signs = [a.sign for a in aspects[i]], [sign for _, sign in traits[i]]
            pairs[i] = same_sign(*signs, named)
        return pairs, [stated is not None for stated in read]

    def _ask(self, role: str, questions: Sequence[Question], required: bool) -> list[Any]:
        """Return what the reply to each question says; `None` of one that is not understood.

        Raises:
            NotUnderstood: `required`, and less than half of three or more are.
        """
        keys = [(role, question.messages[0]["content"]) for question in questions]
        new = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._known}
        requests = [Request(role, q.messages, self.parameters) for q in new.values()]
        replies = ask(self.client, requests) if requests else []
        for (key, question), reply in zip(new.items(), replies, strict=True):
            if (text := whole(reply)) is not None:
                self._known[key] = question.read(text)
        read = [self._known.get(key) for key in keys]
        understood = sum(answer is not None for answer in read)
        enough = len(read) < 3 or understood >= UNDERSTOOD * len(read)
        if required and not enough and not self.client.stopped:
            odd = (
                reply
                for key, reply in zip(new, replies, strict=True)
                if reply is not None and self._known.get(key) is None
            )
            raise not_understood(role, understood, len(read), next(odd, None))
        return read


class Question(NamedTuple):
    """What a role is asked, and how its reply is read; `None` of one that is not understood."""

    messages: tuple[Message, ...]
    read: Callable[[str], Any]


def not_understood(role: str, understood: int, count: int, shown: Reply | None) -> NotUnderstood:
    """Return the error of a role that does not answer what it is asked."""
    lines = "" if shown is None else "".join(f"\n    {x}" for x in form(shown.text).splitlines())
    cut = shown is not None and shown.finish == "length"
    return NotUnderstood(
        f"{role}: {understood} of {count} replies were understood; they must have {LEGAL[role]}. "
        f"One that was not ends with (letters shown as x, digits as 9):{lines or ' nothing'}"
        + (" It is cut: raise problem.max_tokens." if cut else ""),
        role,
    )
