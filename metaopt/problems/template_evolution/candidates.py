"""Candidates of a text search: answered by a target, checked, judged, ranked, kept by reference.

A candidate is a dict of primitives, so that a checkpoint holds it and shows no text:

    query     index of its query
    prompt    reference of the prompt (`metaopt.llm.Client.text` returns the text)
    response  reference of the target's response
    outcome   whether the response meets the objective; `None` when the checker cannot say
    score     the judge's score; `None` when it gave none
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from metaopt.engine.random import fold
from metaopt.llm import (
    BudgetSpent,
    CassetteMiss,
    Client,
    LMError,
    NotUnderstood,
    Parameters,
    PolicyRefusal,
    Reply,
    Request,
    user,
)
from metaopt.problems.template_evolution.prompts import checking, judging, read_verdict
from metaopt.problems.template_evolution.rubric import HIGH, LOW, STEP, parse_score, unit
from metaopt.problems.template_evolution.score_replies import UNDERSTOOD, form

Candidate = dict[str, Any]

Ranking = Literal["label_first", "dense", "outcome", "random"]
RANKINGS = ("label_first", "dense", "outcome", "random")

Checker = Callable[[int, str, int], bool | None]
"""From a query's index, a response and a key to whether the response meets the objective."""


class Panel:
    """Asks target, checker and judge about candidates, all of a batch at once.

    A request that fails makes neither a score nor an outcome.

    Args:
        client: the language models; roles target, judge and, without `check`, checker.
        queries: the objectives.
        check: decides outcomes, or `None` to ask the role checker.
        parameters: how target, judge and checker answer.
        verify: answers of the target to a prompt whose first one succeeded, >= 1; of those with an
            outcome, at least half of `verify`, more than half must be successes.
        again: how the target gives the further ones; drawn, since at temperature 0 a model repeats
            itself.
        outcome_is_score: the checker's outcome takes the judge's place, at no call.
    """

    def __init__(
        self,
        client: Client,
        queries: Sequence[str],
        check: Checker | None,
        parameters: Parameters,
        verify: int = 1,
        again: Parameters | None = None,
        outcome_is_score: bool = False,
    ) -> None:
        self.client, self.queries, self.check = client, queries, check
        self.parameters, self.verify, self.again = parameters, verify, again or parameters
        self.outcome_is_score = outcome_is_score

    def answer(self, prompts: Sequence[tuple[int, str]]) -> list[Candidate]:
        """Return the (query, prompt) pairs that the target answered, checked, not yet judged."""
        answered = self._responses(
            [(query, prompt, 0) for query, prompt in prompts], self.parameters
        )
        candidates = [
            {
                "query": query, "prompt": self.client.keep(prompt),
                "response": self.client.keep(response), "outcome": outcome, "score": None,
            }
            for (query, prompt), response, outcome in zip(prompts, *answered, strict=True)
            if response is not None
        ]  # fmt: skip
        return self._verified(candidates) if self.verify > 1 else candidates

    def judge(
        self, template: str, candidates: Sequence[Candidate], required: bool = False
    ) -> list[Candidate]:
        """Return the candidates with the scores that the template gives them; see `judge`."""
        if self.outcome_is_score:
            fixed = {True: HIGH, False: LOW, None: None}
            return [{**c, "score": fixed[c["outcome"]]} for c in candidates]
        responses = [(c["query"], self.client.text(c["response"])) for c in candidates]
        scores = judge(self.client, template, self.queries, responses, self.parameters, required)
        return [{**c, "score": score} for c, score in zip(candidates, scores, strict=True)]

    def _verified(self, candidates: list[Candidate]) -> list[Candidate]:
        """Return the candidates with the outcome of each success decided by further answers."""
        claimed = [c for c in candidates if c["outcome"]]
        again = [
            (c["query"], self.client.text(c["prompt"]), rollout)
            for c in claimed
            for rollout in range(1, self.verify)
        ]
        outcomes = iter(self._responses(again, self.again)[1])
        for candidate in claimed:
            votes = [True, *(next(outcomes) for _ in range(1, self.verify))]
            known = [vote for vote in votes if vote is not None]
            enough = 2 * len(known) >= self.verify
            candidate["outcome"] = sum(known) > len(known) / 2 if enough else None
        return candidates

    def _responses(
        self, asked: Sequence[tuple[int, str, int]], parameters: Parameters
    ) -> tuple[list[str | None], list[bool | None]]:
        """Return the target's responses to (query, prompt, rollout), and their outcomes."""
        requests = [Request("target", user(p), parameters, r) for _, p, r in asked]
        replies = [reply and reply.text for reply in ask(self.client, requests)]
        if self.check is None:
            return replies, self._checked([q for q, _, _ in asked], replies)
        keys = [fold(0, "check", q, self.client.keep(p), r) for q, p, r in asked]
        outcomes = [
            None if text is None else self.check(query, text, key)
            for (query, _, _), text, key in zip(asked, replies, keys, strict=True)
        ]
        return replies, outcomes

    def _checked(
        self, queries: Sequence[int], responses: Sequence[str | None]
    ) -> list[bool | None]:
        """Return what the role checker says; `None` where it says neither yes nor no."""
        pairs = [(q, r) for q, r in zip(queries, responses, strict=True) if r is not None]
        requests = [
            Request("checker", checking(self.queries[query], response), self.parameters)
            for query, response in pairs
        ]
        verdicts = iter([read_verdict(whole(reply)) for reply in ask(self.client, requests)])
        return [None if r is None else next(verdicts) for r in responses]


def judge(
    client: Client,
    template: str,
    queries: Sequence[str],
    responses: Sequence[tuple[int, str]],
    parameters: Parameters,
    required: bool = False,
) -> list[float | None]:
    """Return the template's scores of (query, response) pairs; `None` where there is none.

    A reply that was cut at its longest length has none: `Score: 1` may be the start of 10.

    Args:
        required: whether replies must be understood, as those under the template that a search
            starts from; one that a writer proposes may be a bad one.

    Raises:
        LMError: see `ask`.
        NotUnderstood: replies must be understood, and less than a tenth of three or more have a
            score.
    """
    requests = [
        Request("judge", judging(template, queries[query], response), parameters)
        for query, response in responses
    ]
    replies = ask(client, requests)
    scores = [None if (text := whole(reply)) is None else parse_score(text) for reply in replies]
    answered = [reply for reply in replies if reply is not None]
    understood = len(scores) - scores.count(None)
    if required and len(answered) >= 3 and 10 * understood < len(answered):
        words = _not_understood(replies, scores, parameters)
        if not client.lms["judge"].deterministic:
            words += " The replies are kept in the run's .cassette file."
        raise NotUnderstood(words, "judge")
    return scores


def _not_understood(
    replies: Sequence[Reply | None], scores: Sequence[float | None], parameters: Parameters
) -> str:
    """Return what is wrong with a judge's replies, and the form of one; never its words."""
    pairs = [(r, s) for r, s in zip(replies, scores, strict=True) if r is not None]
    missed = [reply for reply, score in pairs if score is None]
    cut = sum(reply.finish == "length" for reply in missed)
    shown = next((reply for reply in missed if reply.finish != "length"), missed[0])
    lines = "".join(f"\n    {line}" for line in form(shown.text).splitlines())
    return (
        f"judge: {len(missed)} of {len(pairs)} replies are not understood"
        + (f", of which {cut} are cut at max_tokens={parameters.max_tokens}" if cut else "")
        + f". One of {len(shown.text)} characters ends with (letters shown as x, digits as 9):"
        + (lines or " nothing")
        + "\nUnderstood are last lines such as "
        + ", ".join(f"`{line}`" for line in UNDERSTOOD)
        + f", from {LOW:g} to {HIGH:g} in steps of {STEP:g}. Let the template ask for one"
        + (", raise max_tokens" if cut else "")
        + ", or take another judge."
    )


def ask(client: Client, requests: Sequence[Request]) -> list[Reply | None]:
    """Return the replies; `None` in the place of a failure.

    Raises:
        CassetteMiss: a replay holds no answer to one of them.
        LMError: some met a failure that passes, again and again, or more than half of three or
            more failed, other than by a policy or a budget: a result would be that of an outage.
            What was answered is kept, and a resumed run asks for the rest.
    """
    replies = client.ask_all(requests)
    failures = [reply for reply in replies if isinstance(reply, LMError)]
    for failure in failures:
        if isinstance(failure, CassetteMiss):
            raise failure
    stopping = any(isinstance(f, (BudgetSpent, PolicyRefusal)) for f in failures)
    if 2 * len(failures) > len(replies) >= 3 and not stopping:
        role, count = requests[0].role, f"{len(failures)} of {len(replies)}"
        raise LMError(f"{role}: {count} requests failed: {failures[0]}", role)
    return [None if isinstance(reply, LMError) else reply for reply in replies]


def whole(reply: Reply | None) -> str | None:
    """Return a reply's text; `None` of a failure and where the text was cut at its length."""
    return None if reply is None or reply.finish == "length" else reply.text


def whole_lines(reply: Reply | None) -> str:
    """Return a reply's text without a last line that was cut; nothing of a failure."""
    if reply is None or reply.finish != "length":
        return "" if reply is None else reply.text
    return reply.text.rpartition("\n")[0]


def best(log: Iterable[Candidate], query: int, count: int, ranking: Ranking) -> list[Candidate]:
    """Return the `count` best candidates of a query, best first; ties by reference."""

    def rank(candidate: Candidate) -> tuple[float, float, str]:
        if ranking == "random":
            return 0.0, 0.0, candidate["prompt"]
        score = -np.inf if candidate["score"] is None else candidate["score"]
        label = float(candidate["outcome"] is True) if ranking == "label_first" else 0.0
        # References are hashes: the order among equals has nothing to do with what a prompt says.
        return -label, -score, candidate["prompt"]

    return sorted((c for c in log if c["query"] == query), key=rank)[:count]


def recorded(logs: Iterable[Iterable[Candidate]], most: int) -> list[Candidate]:
    """Return up to `most` different candidates of each outcome: those of the lowest references.

    References are hashes, so this is a random sample, and one that changes little as logs grow.
    """
    different = {(c["query"], c["prompt"]): c for log in logs for c in log}
    ordered = sorted(different.values(), key=lambda c: (c["prompt"], c["query"]))
    sides = [[c for c in ordered if c["outcome"] is side][:most] for side in (True, False)]
    return sides[0] + sides[1]


def judged(log: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates with a score and an outcome."""
    return [c for c in log if c["score"] is not None and c["outcome"] is not None]


def arrays(candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as probabilities in [0, 1], and outcomes in {0, 1}, of judged candidates."""
    probability = np.array([unit(c["score"]) for c in candidates])
    return probability, np.array([int(c["outcome"]) for c in candidates])
