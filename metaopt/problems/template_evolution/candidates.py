"""Candidates of a text search: answered by a target, checked, judged, ranked, kept by reference.

A candidate is a dict of primitives, so that a checkpoint holds it and shows no text:

    query     index of its query
    prompt    reference of the prompt (`metaopt.llm.Client.text` returns the text)
    response  reference of the target's response
    outcome   whether the response meets the objective; `None` when the checker cannot say
    score     the judge's score; `None` when it gave none
    mass      where it scores by choices: the probability of all of them together
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from metaopt.engine.random import fold
from metaopt.llm import Client, NotUnderstood, Parameters, Reply, Request, user
from metaopt.llm.rubric import HIGH, LOW, unit
from metaopt.problems.template_evolution.prompts import checking, read_verdict
from metaopt.problems.template_evolution.scoring import (
    LEAST_MASS,
    Judgement,
    Scoring,
    WrittenScore,
    centre,
    mean_mass,
)
from metaopt.problems.text import ask, whole

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
        scoring: what the judge is asked.
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
        scoring: Scoring | None = None,
    ) -> None:
        self.client, self.queries, self.check = client, queries, check
        self.parameters, self.verify, self.again = parameters, verify, again or parameters
        self.outcome_is_score, self.scoring = outcome_is_score, scoring or WrittenScore()

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
        judgements = judge(
            self.client, self.scoring, template, self.queries, responses, self.parameters, required
        )
        return [
            {**c, "score": j.score, **({} if j.mass is None else {"mass": j.mass})}
            for c, j in zip(candidates, judgements, strict=True)
        ]

    def judge_more(
        self, template: str, log: Sequence[Candidate], fresh: Sequence[Candidate]
    ) -> list[Candidate]:
        """Return judged candidates and more of them; all again where scores are relative.

        What was asked before is free.
        """
        if self.scoring.centred:
            return self.judge(template, [*log, *fresh])
        return [*log, *self.judge(template, fresh)]

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
    scoring: Scoring,
    template: str,
    queries: Sequence[str],
    responses: Sequence[tuple[int, str]],
    parameters: Parameters,
    required: bool = False,
) -> list[Judgement]:
    """Return what the judge makes of (query, response) pairs.

    Args:
        required: whether replies must be understood, as those under the template that a search
            starts from; one that a writer proposes may be a bad one.

    Raises:
        LMError: see `ask`.
        NotUnderstood: replies must be understood, and less than a tenth of three or more have a
            score.
    """
    requests = [
        scoring.request(template, queries[query], response, parameters)
        for query, response in responses
    ]
    answers = iter(ask(client, [request for request in requests if request is not None]))
    replies = [None if request is None else next(answers) for request in requests]
    judgements = [Judgement(None) if reply is None else scoring.read(reply) for reply in replies]
    if required:
        _check_understood(client, scoring, replies, judgements, parameters)
    if not scoring.centred:
        return judgements
    scores = centre([j.score for j in judgements], [queries[query] for query, _ in responses])
    return [j._replace(score=score) for j, score in zip(judgements, scores, strict=True)]


def _check_understood(
    client: Client,
    scoring: Scoring,
    replies: Sequence[Reply | None],
    judgements: Sequence[Judgement],
    parameters: Parameters,
) -> None:
    """Refuse replies of which hardly any has a score; warn of choices that are hardly likely."""
    answered = [reply for reply in replies if reply is not None]
    missed = [
        reply
        for reply, judgement in zip(replies, judgements, strict=True)
        if reply is not None and judgement.score is None
    ]
    if len(answered) >= 3 and 10 * (len(answered) - len(missed)) < len(answered):
        words = scoring.complaint(answered, missed, parameters)
        if not client.lms["judge"].deterministic:
            words += " The replies are kept in the run's .cassette file."
        raise NotUnderstood(words, "judge")
    mass = mean_mass(j.mass for j in judgements)
    if mass is not None and mass < LEAST_MASS:
        logging.getLogger(__name__).warning(
            "judge: the choices have %.3f of the probability together, below %g: the judge would "
            "rather say something else. Ask for them more plainly (problem.scoring.question), or "
            "lead to them by problem.scoring.prefill, such as 'Answer:' with choices that begin "
            "with a space.",
            mass,
            LEAST_MASS,
        )


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
