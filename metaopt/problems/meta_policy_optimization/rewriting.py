"""A rewrite of the rubric: an analysis and a refinement after each rollout, then their merge."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from metaopt.engine.random import fold
from metaopt.llm import Client, NotUnderstood, Parameters, Reply, Request
from metaopt.llm.chat import Message
from metaopt.llm.rubric_items import has_items
from metaopt.llm.score_replies import form
from metaopt.problems.meta_policy_optimization.item_scores import read_weights
from metaopt.problems.meta_policy_optimization.prompts import (
    MOST_ITEMS,
    analysing,
    merging,
    read_rubric,
    refining,
)
from metaopt.problems.text import ask, whole

MERGES = 3
"""Most answers that are asked for until one holds a rubric."""

Shown = Sequence[tuple[str, str | None, float | None]]
"""Query, response (`None` for a blind rewriter) and the judge's points of each rollout."""


class Rewriter:
    """Asks the role meta for a new rubric.

    Args:
        client: the language models.
        votes: refinements that must have a new item.
        parameters: how the meta judge answers.
    """

    def __init__(self, client: Client, votes: int, parameters: Parameters) -> None:
        self.client, self.votes, self.parameters = client, votes, parameters

    def __call__(self, rubric: str, shown: Shown, key: int) -> str:
        """Return the new rubric; the old one where the client has stopped or no merge is one.

        Args:
            rubric: the current one.
            shown: the rollouts.
            key: of the draws: it is in the index of every request, so that a second rewrite of the
                same rollouts is another one.

        Raises:
            NotUnderstood: less than a tenth of three or more refinements hold a rubric.

        Warns:
            UserWarning: no merge holds one.
        """
        refinements = self._refinements(rubric, shown, key)
        if self.client.stopped or not refinements:
            return rubric
        for attempt in range(MERGES):
            question = merging(rubric, refinements, min(self.votes, len(refinements)))
            (reply,) = self._ask([question], fold(key, "merge", attempt))
            if self.client.stopped:
                return rubric
            if merged := read_rubric(whole(reply) or "", has_items(rubric)):
                return merged
        warnings.warn(
            f"none of {MERGES} merges of {len(refinements)} refinements holds a rubric of at most "
            f"{MOST_ITEMS} items: the rubric stays as it is. Ask a larger meta judge.",
            stacklevel=2,
        )
        return rubric

    def _refinements(self, rubric: str, shown: Shown, key: int) -> list[str]:
        """Return the refined rubrics, of the rollouts whose answers were whole and understood."""
        questions = [analysing(rubric, *rollout) for rollout in shown]
        analyses = [whole(reply) for reply in self._ask(questions, fold(key, "analyse"))]
        questions = [refining(rubric, analysis) for analysis in analyses if analysis]
        replies = [reply for reply in self._ask(questions, fold(key, "refine")) if reply]
        free = has_items(rubric)
        most = len(read_weights(rubric)) + MOST_ITEMS  # the merge is what makes it short again
        rubrics = [read_rubric(whole(reply) or "", free, most) for reply in replies]
        understood = [each for each in rubrics if each is not None]
        if len(replies) >= 3 and 10 * len(understood) < len(replies):
            raise NotUnderstood(
                _complaint(replies[0], len(understood), len(replies), free, most), "meta"
            )
        return understood

    def _ask(self, questions: Sequence[tuple[Message, ...]], key: int) -> list[Reply | None]:
        """Return the replies, each with an index of its own."""
        requests = [
            Request("meta", question, self.parameters, fold(key, i) % 2**31)
            for i, question in enumerate(questions)
        ]
        return ask(self.client, requests) if requests else []


def _complaint(reply: Reply, understood: int, count: int, free: bool, most: int) -> str:
    item = "a block <item points=5> ... </item>" if free else "a line '- <criterion>: <weight>'"
    lines = "".join(f"\n    {line}" for line in form(reply.text).splitlines())
    cut = " It is cut: raise problem.max_tokens." if reply.finish == "length" else ""
    return (
        f"meta: {count - understood} of {count} refinements hold no rubric between <rubric> and "
        f"</rubric>, with {item} for each of at most {most} items. One of "
        f"{len(reply.text)} characters ends with (letters shown as x, digits as 9):"
        f"{lines or ' nothing'}{cut}"
    )
