"""Language models of a client that complete solutions and judge answers, for Monte-Carlo labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from metaopt.engine.ranges import check_ranges
from metaopt.llm.chat import Message, Parameters, Reply, Request, user
from metaopt.llm.client import Client
from metaopt.llm.errors import LMError, Truncated
from metaopt.problems.process_reward.labelling.rollouts import digest

CONTINUE = """Here is a question and the beginning of a solution. Continue the solution from where \
it stops, one step a line. Do not repeat or correct the steps that are there. End with a line \
`Final answer: ` and the answer.

Question:
{prompt}

Solution:
{prefix}"""

COMPARE = """Here is a question with its right answer, and somebody's answer. Say whether the \
answer means the same as the right answer. Do not solve the question.

Question:
{prompt}

Right answer: {reference}
Answer: {answer}

Reply with one word, correct or incorrect."""

VERDICT = re.compile(r"\W*(correct|incorrect)\W*", re.I)


class ClientCompletion:
    """Completes solutions by asking a model of a client.

    A completion that was cut off is `None`. Draws differ in the
    request's rollout, a number from the generator, so a recorded run replays.

    Args:
        client: holds the model of the role `policy`.
        temperature: above 0, so that rollouts differ; released process reward models took 0.3 to 1.
        max_tokens: longest completion.
        prefill: make the first steps the beginning of the assistant's turn, which
            `metaopt.llm.transformers_lm.TransformersLM` continues; else a prompt asks for the rest,
            as servers differ in what they make of a turn that has begun.

    Raises:
        ValueError: a client without the role, or a temperature of 0.
    """

    def __init__(
        self,
        client: Client,
        temperature: float = 0.6,
        max_tokens: int = 1_024,
        prefill: bool = False,
    ) -> None:
        model = _model(client, "policy")
        self.temperature, self.prefill = temperature, prefill
        check_ranges(self, "temperature > 0")
        self._client, self._parameters = client, Parameters(temperature, max_tokens)
        how = "prefill" if prefill else f"template={digest(CONTINUE)}"
        self.name = f"{model} t={temperature} max_tokens={max_tokens} {how}"

    def complete(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        draw: np.random.Generator,
    ) -> list[str | None]:
        """Return the rest of each solution.

        Raises:
            LMError: nothing more can be asked: a spent budget, a refusal, a rejected request, a
                replay without the answer, or a server that fails again and again.
        """
        numbers = draw.integers(2**31, size=len(prompts)).tolist()
        requests = [
            Request("policy", self._messages(prompt, prefix), self._parameters, number)
            for prompt, prefix, number in zip(prompts, prefixes, numbers, strict=True)
        ]
        replies = _replies(self._client, requests)
        return [None if r is None or r.finish == "length" else r.text.strip() for r in replies]

    def _messages(self, prompt: str, prefix: Sequence[str]) -> tuple[Message, ...]:
        if not self.prefill:
            return user(CONTINUE.format(prompt=prompt, prefix="\n".join(prefix)))
        begun = "".join(f"{step}\n\n" for step in prefix)
        return (*user(prompt), {"role": "assistant", "content": begun})


class ClientJudge:
    """Decides whether answers agree by asking a model at temperature 0.

    Args:
        client: holds the model of the role `judge`.

    Raises:
        ValueError: a client without the role.
    """

    def __init__(self, client: Client) -> None:
        self.name = f"{_model(client, 'judge')} template={digest(COMPARE)}"
        self._client = client

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[bool | None]:
        """Return whether each answer is right; `None` for a reply that is neither word.

        Raises:
            LMError: nothing more can be asked.
        """
        questions = zip(prompts, answers, references, strict=True)
        requests = [
            Request(
                "judge",
                user(COMPARE.format(prompt=prompt, answer=answer, reference=reference)),
                Parameters(0.0, 16),
            )
            for prompt, answer, reference in questions
        ]
        verdicts: list[bool | None] = []
        for reply in _replies(self._client, requests):
            verdict = None if reply is None else VERDICT.fullmatch(reply.text)
            verdicts.append(None if verdict is None else verdict[1].lower() == "correct")
        return verdicts


def _replies(client: Client, requests: Sequence[Request]) -> list[Reply | None]:
    replies: list[Reply | None] = []
    for answer in client.ask_all(requests):
        if isinstance(answer, LMError) and not isinstance(answer, Truncated):
            raise answer
        replies.append(answer if isinstance(answer, Reply) else None)
    return replies


def _model(client: Client, role: str) -> str:
    """Return the name of a role's model."""
    if role not in client.lms:
        raise ValueError(f"role={role!r} has no model; roles are {', '.join(sorted(client.lms))}.")
    return client.lms[role].model
