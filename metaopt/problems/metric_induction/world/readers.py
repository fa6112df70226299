"""Readers of the world's texts that play extractor, judge, grounder and rewriter.

Each sees its message alone, as a language model would, and knows what words mean (`vocabulary`),
but neither which subjects are planted behaviours nor what any other reader has answered. With
probability `error` each of their answers is wrong, drawn from a hash of the message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from metaopt.engine.ranges import check_ranges
from metaopt.llm.chat import Message
from metaopt.problems.metric_induction import prompts
from metaopt.problems.metric_induction.metric_set import Metric, parse, render
from metaopt.problems.metric_induction.prompts import Aspect
from metaopt.problems.metric_induction.world.vocabulary import (
    events,
    sentences,
    subject_words,
    subjects,
)

UNMATCHED_SHARE, FEWEST_TRAITS = 0.75, 4
"""A metric is dropped of whose traits, four at least, more than this share is not matched."""


@lru_cache(maxsize=65536)
def rating(metric: str, trajectory: str) -> int:
    """Return the rating of a trajectory on a metric: the sign of what it shows of its subjects.

    A metric about several subjects sums over them; where good and bad balance it says nothing.
    """
    shown = events(trajectory)
    return int(np.sign(sum(shown.get(subject, 0) for subject in subjects(metric))))


class Reader(ABC):
    """What all of them have.

    Args:
        error: probability that an answer is wrong, in [0, 1].

    Raises:
        ValueError: an error that is not a probability.
    """

    def __init__(self, error: float) -> None:
        self.error = error
        check_ranges(self, "0 <= error <= 1")

    @abstractmethod
    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to a message; `key` is a hash of it."""


class Extractor(Reader):
    """Copies each sentence that praises or criticises; it does not err."""

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to `prompts.extracting`."""
        feedback = prompts.shown_feedback(messages[-1]["content"])
        lines = [f"{prompts.word(sign)}: {text}" for text, sign in sentences(feedback)]
        return "\n".join(lines) or "none"


class Judge(Reader):
    """Reads the name and the definition of a metric, and rates by `rating`.

    With probability `error` it gives one of the other two ratings, each as likely.
    """

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to `prompts.judging`."""
        message = messages[-1]["content"]
        metrics = parse(message.partition("<trajectory>")[0])
        if not metrics:
            return "There is no metric here."
        text = metrics[0].name + " " + metrics[0].definition
        true = rating(text, prompts.shown_trajectory(message))
        draw = np.random.default_rng(key)
        if draw.random() < self.error:
            true = int(draw.choice([sign for sign in (-1, 0, 1) if sign != true]))
        return f"Rating: {true:+d}"


class Grounder(Reader):
    """Matches an aspect to the first trait of its sign that is about the same subject.

    With probability `error` it names one of the traits, or none, all of them as likely.
    """

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to `prompts.grounding`."""
        message, draw = messages[-1]["content"], np.random.default_rng(key)
        aspects, traits = prompts.shown_aspects(message), prompts.shown_traits(message)
        lines = []
        for number, aspect in enumerate(aspects, 1):
            fitting = (i for i, trait in enumerate(traits, 1) if _same(aspect, trait))
            trait = next(fitting, 0)
            if draw.random() < self.error:
                trait = int(draw.integers(len(traits) + 1))
            lines.append(f"{number}: {trait or 'none'}")
        return "\n".join(lines)


class Rewriter(Reader):
    """Groups the uncovered aspects by subject, and writes a metric for each of the largest groups.

    Its definition has the words of the group's aspects. With probability `error` a new metric
    mixes the group with another one. Shown ratings that no feedback speaks of, it drops the metrics
    of which more than `UNMATCHED_SHARE` are unmatched, or, for want of room, the least matched.
    """

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to `prompts.rewriting`."""
        message, draw = messages[-1]["content"], np.random.default_rng(key)
        names = [m.name for m in parse(message.partition(prompts.UNCOVERED)[0])]
        count, most = prompts.shown_limits(message)
        groups = _groups(prompts.shown_uncovered(message), draw)
        new: list[Metric] = []
        for group in groups[:count]:
            mixed = len(groups) > 1 and draw.random() < self.error
            others = [other for other in groups if other is not group] if mixed else []
            aspects = group + (others[draw.integers(len(others))] if others else [])
            new.append(_written(aspects, [*names, *(m.name for m in new)]))
        dropped = self._dropped(prompts.shown_unmatched(message) or {}, names, len(new), most)
        return "\n".join([render(new), *(f"Drop: {name}" for name in dropped)])

    def _dropped(
        self,
        unmatched: prompts.Ratings,
        names: Sequence[str],
        new: int,
        most: int | None,
    ) -> list[str]:
        shares = {name: count / of for name, (count, of) in unmatched.items() if of}
        worst = sorted(shares, key=lambda name: -shares[name])
        dropped = [
            name
            for name in worst
            if shares[name] > UNMATCHED_SHARE and unmatched[name][1] >= FEWEST_TRAITS
        ]
        over = 0 if most is None else len(names) + new - len(dropped) - most
        return dropped + [name for name in worst if name not in dropped][: max(over, 0)]


def _same(aspect: Aspect, trait: Aspect) -> bool:
    return aspect.sign == trait.sign and bool(subjects(aspect.text) & subjects(trait.text))


def _groups(aspects: Sequence[Aspect], draw: np.random.Generator) -> list[list[Aspect]]:
    """Return the aspects by subject, the largest group first, in random order where tied."""
    groups: dict[str, list[Aspect]] = {}
    for aspect in aspects:
        for subject in sorted(subjects(aspect.text))[:1]:
            groups.setdefault(subject, []).append(aspect)
    order = dict(zip(sorted(groups), draw.permutation(len(groups)).tolist(), strict=True))
    return [groups[s] for s in sorted(groups, key=lambda s: (-len(groups[s]), order[s]))]


def _written(aspects: Sequence[Aspect], names: Sequence[str]) -> Metric:
    """Return a metric for what some aspects are about, under a name that is not taken."""
    words = [w for w, _ in Counter(w for a in aspects for w in subject_words(a.text)).most_common()]
    name, number = " and ".join(words[:2]), 2
    while name in names:
        name, number = f"{' and '.join(words[:2])} ({number})", number + 1
    examples = tuple(dict.fromkeys(a.text for a in aspects))[:2]
    return Metric(name, f"How the agent does on {', '.join(words)}.", examples)
