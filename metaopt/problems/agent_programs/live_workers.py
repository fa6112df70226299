"""Live workers: language models behind the client, with its cassette and its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metaopt.data.final_answers import agree, final_answer
from metaopt.engine.ranges import check_ranges
from metaopt.llm import LM, Client, Parameters, Request, user
from metaopt.problems.agent_programs import worker_prompts as prompts
from metaopt.problems.agent_programs.features import features_of, thresholds_of
from metaopt.problems.agent_programs.programs import JUDGE
from metaopt.problems.agent_programs.questions import Questions
from metaopt.problems.agent_programs.workers import NO_ANSWER, Flags, Ints, Workers
from metaopt.problems.text import ask, whole

Texts = NDArray[np.object_]


class LiveWorkers(Workers):
    """Language models that answer questions with known answers.

    Each worker is a role of the client. `refine`, `critique`, `debate` and the judge ask the first
    worker. A reply that failed, or was cut at `max_tokens`, is a solution without an answer, which
    is wrong and has no vote; a critic's without a verdict flags nothing, and a judge's without a
    choice picks the first candidate. Features are counts in the question's text
    (`metaopt.problems.agent_programs.features`).

    Args:
        data: questions and answers, as `question_file` returns them.
        models: by name of the worker; one named `solver` is usual.
        temperature: at which all are asked, >= 0; at 0 all calls of a vote are alike.
        max_tokens: longest reply.

    Raises:
        ValueError: no model, a name that a program cannot hold or that is taken, or an argument
            outside its range.

    Cost: a call of a model is one of the client, with its budget, pace and record.
    """

    criteria = (JUDGE, "longest", "shortest")

    def __init__(
        self,
        data: Questions,
        models: Mapping[str, LM],
        temperature: float = 0.7,
        max_tokens: int = 1024,
    ) -> None:
        self.temperature, self.max_tokens = temperature, max_tokens
        check_ranges(self, "temperature >= 0", "max_tokens >= 1")
        self._models = dict(models)
        illegal = [n for n in self._models if not n.isidentifier() or n == "rewriter"]
        if not self._models or illegal:
            raise ValueError(
                "LiveWorkers needs models, at least one, by names that are identifiers and not "
                f"`rewriter`, such as solver; got {', '.join(self._models) or 'none'}. Give "
                "+llm@problem.workers.models.solver=openai_compatible."
            )
        self.names, self.data, self.size = tuple(self._models), data, len(data.texts)
        self.parameters = Parameters(temperature, max_tokens)
        features = features_of(data.texts)
        self.thresholds = {n: t for n, values in features.items() if (t := thresholds_of(values))}
        self.features = {name: features[name] for name in self.thresholds}
        self._client: Client | None = None
        self._texts: list[str] = []
        self._codes: dict[str, int] = {}
        self._code_of: list[int] = []

    @property
    def lms(self) -> Mapping[str, LM]:
        """The models by the names of their workers."""
        return self._models

    def bind(self, client: Client) -> None:
        """Keep the client that is asked."""
        self._client = client

    def solve(self, worker: str, questions: Ints, key: int) -> Ints:
        """Return fresh solutions."""
        texts = [prompts.SOLVE.format(question=self.data.texts[q]) for q in questions]
        return self._solutions(texts, key, worker)

    def answers(self, questions: Ints, solutions: Ints) -> Ints:
        """Return the number of each solution's final answer."""
        return np.array([self._code_of[s] for s in solutions], dtype=np.int64)

    def correct(self, questions: Ints, solutions: Ints) -> Flags:
        """Return whether each final answer agrees with the reference."""
        pairs = zip(questions, solutions, strict=True)
        return np.array(
            [
                agree(final_answer(self._texts[s]), self.data.references[q]) is True
                for q, s in pairs
            ],
            dtype=bool,
        )

    def score(self, criterion: str, questions: Ints, solutions: Ints) -> Ints:
        """Return the length of each solution, or minus it; less than any of one without answer."""
        sign = 1 if criterion == "longest" else -1
        lengths = [sign * len(self._texts[s]) for s in solutions]
        answered = self.answers(questions, solutions) != NO_ANSWER
        return np.where(answered, lengths, np.iinfo(np.int64).min)

    def refine(self, questions: Ints, solutions: Ints, key: int) -> Ints:
        """Return the solutions after the first worker has looked through them."""
        texts = [
            prompts.REFINE.format(question=self.data.texts[q], solution=self._texts[s])
            for q, s in zip(questions, solutions, strict=True)
        ]
        return self._solutions(texts, key)

    def flags(self, questions: Ints, solutions: Ints, key: int) -> tuple[Flags, Texts]:
        """Return whether the critic's verdict is "wrong", and its texts."""
        texts = [
            prompts.CRITIC.format(question=self.data.texts[q], solution=self._texts[s])
            for q, s in zip(questions, solutions, strict=True)
        ]
        replies = self._ask(texts, key)
        flagged = np.array([prompts.found_wrong(reply) for reply in replies], dtype=bool)
        return flagged, np.array(replies, dtype=object)

    def revise(self, questions: Ints, solutions: Ints, notes: Texts, key: int) -> Ints:
        """Return the solutions after the first worker has read the critic."""
        texts = [
            prompts.REVISE.format(question=self.data.texts[q], solution=self._texts[s], notes=note)
            for q, s, note in zip(questions, solutions, notes, strict=True)
        ]
        return self._solutions(texts, key)

    def argue(self, questions: Ints, own: Ints, other: Ints, key: int) -> Ints:
        """Return what a side holds after reading the other's solution."""
        texts = [
            prompts.ARGUE.format(
                question=self.data.texts[q], own=self._texts[a], other=self._texts[b]
            )
            for q, a, b in zip(questions, own, other, strict=True)
        ]
        return self._solutions(texts, key)

    def choose(self, questions: Ints, candidates: Sequence[Ints], key: int) -> Ints:
        """Return the candidate that the judge picks."""
        texts = [
            prompts.judging(self.data.texts[q], [self._texts[s] for s in each])
            for q, each in zip(questions, np.stack(candidates).T, strict=True)
        ]
        replies = self._ask(texts, key)
        return np.array([prompts.choice(r, len(candidates)) for r in replies], dtype=np.int64)

    def _ask(self, texts: Sequence[str], key: int, worker: str = "") -> list[str | None]:
        if self._client is None:
            raise RuntimeError("LiveWorkers.bind(client) gives it the client that it asks.")
        role, rollout = worker or self.names[0], key % 2**31
        requests = [Request(role, user(text), self.parameters, rollout) for text in texts]
        return [whole(reply) for reply in ask(self._client, requests)]

    def _solutions(self, texts: Sequence[str], key: int, worker: str = "") -> Ints:
        """Return the numbers of the replies, which are kept as solutions."""
        first = len(self._texts)
        for reply in self._ask(texts, key, worker):
            text = reply or ""
            answer = final_answer(text)
            self._texts.append(text)
            self._code_of.append(
                self._codes.setdefault(answer, len(self._codes)) if answer else NO_ANSWER
            )
        return np.arange(first, len(self._texts), dtype=np.int64)
