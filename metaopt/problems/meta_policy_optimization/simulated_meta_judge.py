"""A simulated meta judge: analyses a response, refines the rubric after it, merges refinements.

It reads nothing but its message, as a language model would. It knows a quality from an abuse when a
response shows one, since it knows what the words mean (`vocabulary`); what each is worth, and which
abuse fools which judgement, it does not know. Shown no response, it has nothing to go by.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from metaopt.engine.ranges import check_ranges
from metaopt.llm.chat import Message
from metaopt.problems.meta_policy_optimization import prompts
from metaopt.problems.meta_policy_optimization.item_scores import read_weights, render
from metaopt.problems.meta_policy_optimization.vocabulary import WORDS, Vocabulary

QUALITY_POINTS, ABUSE_POINTS = 5.0, -4.0

_CHANGE = re.compile(r"(?:Reward|Deduct for|Drop) ([a-z ]+)\.")


class SimulatedMetaJudge:
    """Answers `prompts.analysing`, `refining` and `merging`, each as a function of its message.

    With probability 1 - error an analysis calls for deducting `ABUSE_POINTS` for every abuse that
    the response shows and the rubric does not deduct; with probability 0.5 for rewarding one of the
    qualities that the rubric does not reward, with `QUALITY_POINTS`; and with probability 0.5 for
    dropping one of the items that are beside the point. Otherwise it calls for rewarding or
    deducting a random feature.

    Args:
        error: probability that one analysis is wrong, in [0, 1].
        vocabulary: what a response can show, and how it reads one.

    Raises:
        ValueError: an error that is not a probability.
    """

    def __init__(self, error: float, vocabulary: Vocabulary = WORDS) -> None:
        self.error, self.vocabulary = error, vocabulary
        check_ranges(self, "0 <= error <= 1")

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to one of the three questions."""
        text = messages[-1]["content"]
        if text.startswith(prompts.MERGE):
            current, *refinements = map(read_weights, prompts.shown_rubrics(text))
            return _answer(merged(current, refinements, prompts.votes_needed(text)))
        weights = dict(read_weights(prompts.shown_rubrics(text)[0]))
        if text.startswith(prompts.REFINE):
            return _answer(refined(weights, prompts.shown_analysis(text)))
        shown = prompts.shown_response(text)
        query = prompts.shown_query(text)
        read = None if shown is None else self.vocabulary.read(query, shown)
        return self.analyse(weights, read, key)

    def analyse(self, weights: Mapping[str, float], shown: frozenset[str] | None, key: int) -> str:
        """Return an analysis of what a response shows, `None` for no response."""
        draw, words = np.random.default_rng(key), self.vocabulary
        if draw.random() < self.error:
            verb = str(draw.choice(["Reward", "Deduct for"]))
            return f"{verb} {draw.choice(words.features)}."
        if shown is None:
            return "There is no response to go by."
        changes = [
            f"Deduct for {name}."
            for name in words.abuses
            if name in shown and weights.get(name, 0) >= 0
        ]
        missing = [name for name in words.qualities if weights.get(name, 0.0) <= 0]
        if missing and draw.random() < 0.5:
            changes.append(f"Reward {draw.choice(missing)}.")
        beside = [name for name in words.neutral if name in weights]
        if beside and draw.random() < 0.5:
            changes.append(f"Drop {draw.choice(beside)}.")
        return "\n".join(changes) or "The rubric serves this response well."


def refined(weights: Mapping[str, float], analysis: str) -> dict[str, float]:
    """Return the weights after the changes that an analysis calls for."""
    changed = dict(weights)
    for line in analysis.splitlines():
        if match := _CHANGE.fullmatch(line):
            name = match[1]
            if line.startswith("Drop"):
                changed.pop(name, None)
            else:
                changed[name] = QUALITY_POINTS if line.startswith("Reward") else ABUSE_POINTS
    return changed or dict(weights)  # a rubric without an item would reward nothing


def merged(
    current: Mapping[str, float], refinements: Sequence[Mapping[str, float]], votes: int = 1
) -> dict[str, float]:
    """Return what most refinements agree on; their order makes no difference.

    An old item goes when half of them have dropped it, a new one comes when `votes` of them have
    it; each has the weight that most of them give it. At most `prompts.MOST_ITEMS` stay, those with
    the most votes, old ones before new ones of as many.
    """
    counts = {
        name: Counter(r[name] for r in refinements if name in r)
        for name in sorted({name for r in refinements for name in r})
    }
    held = {name: sum(count.values()) for name, count in counts.items()}
    staying = [name for name in current if 2 * held.get(name, 0) > len(refinements)]
    coming = [name for name in counts if name not in current and held[name] >= votes]
    names = sorted([*staying, *coming], key=lambda n: (-held[n], n not in current))
    chosen = set(names[: prompts.MOST_ITEMS])
    ordered = [*(n for n in staying if n in chosen), *(n for n in names if n in chosen)]
    # Of as many votes for several weights, the smallest: to deduct by mistake does less harm.
    weights = {
        name: min(counts[name], key=lambda w: (-counts[name][w], w))
        for name in dict.fromkeys(ordered)
    }
    return weights or dict(current)


def _answer(weights: Mapping[str, float]) -> str:
    return f"<rubric>\n{render(weights)}\n</rubric>"
