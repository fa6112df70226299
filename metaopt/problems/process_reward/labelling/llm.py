"""Language models of a client that complete solutions and judge answers, for Monte-Carlo labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from metaopt.llm.chat import Parameters, Reply, Request, user
from metaopt.llm.client import Client
from metaopt.llm.errors import LMError, Transient, Truncated
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
    """Completes solutions by asking a role of a client.

    A completion that was cut off, or failed for good on its way, is `None`. Draws differ in the
    request's rollout, a number from the generator, so a recorded run replays.

    Args:
        client: holds the models.
        role: who is asked.
        temperature: above 0, so that rollouts differ.
        max_tokens: longest completion.
        template: with the fields {prompt} and {prefix}.

    Raises:
        ValueError: a role without a model, a temperature of 0, or a template without its fields.
    """

    def __init__(
        self,
        client: Client,
        role: str = "policy",
        temperature: float = 0.6,
        max_tokens: int = 1_024,
        template: str = CONTINUE,
    ) -> None:
        _check(client, role, template, ("{prompt}", "{prefix}"))
        if temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, or all rollouts are alike; got {temperature}."
            )
        self._client, self._role, self._template = client, role, template
        self._parameters = Parameters(temperature, max_tokens)
        self.name = (
            f"{client.lms[role].model} t={temperature} max_tokens={max_tokens} "
            f"template={digest(template)}"
        )

    def complete(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        draw: np.random.Generator,
    ) -> list[str | None]:
        """Return the rest of each solution.

        Raises:
            LMError: nothing more can be asked: a spent budget, a refusal, a rejected request, or
                a replay without the answer.
        """
        requests = [
            Request(
                self._role,
                user(_filled(self._template, prompt=prompt, prefix="\n".join(prefix))),
                self._parameters,
                int(number),
            )
            for prompt, prefix, number in zip(
                prompts, prefixes, draw.integers(2**31, size=len(prompts)), strict=True
            )
        ]
        replies = _replies(self._client, requests)
        return [None if r is None or r.finish == "length" else r.text.strip() for r in replies]


class ClientJudge:
    """Decides whether answers agree by asking a role of a client, at temperature 0.

    Args:
        client: holds the models.
        role: who is asked.
        template: with the fields {prompt}, {answer} and {reference}.

    Raises:
        ValueError: a role without a model, or a template without its fields.
    """

    def __init__(self, client: Client, role: str = "judge", template: str = COMPARE) -> None:
        _check(client, role, template, ("{prompt}", "{answer}", "{reference}"))
        self._client, self._role, self._template = client, role, template
        self.name = f"{client.lms[role].model} template={digest(template)}"

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[bool | None]:
        """Return whether each answer is right; `None` for a reply that is neither word.

        Raises:
            LMError: nothing more can be asked.
        """
        rows = zip(prompts, answers, references, strict=True)
        requests = [
            Request(
                self._role,
                user(_filled(self._template, prompt=p, answer=a, reference=r)),
                Parameters(0.0, 16),
            )
            for p, a, r in rows
        ]
        verdicts: list[bool | None] = []
        for reply in _replies(self._client, requests):
            verdict = None if reply is None else VERDICT.fullmatch(reply.text)
            verdicts.append(None if verdict is None else verdict[1].lower() == "correct")
        return verdicts


def _filled(template: str, **fields: str) -> str:
    """Return the template with its fields; braces in a field's text stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: fields.get(m[1], m[0]), template)


def _replies(client: Client, requests: Sequence[Request]) -> list[Reply | None]:
    replies: list[Reply | None] = []
    for answer in client.ask(requests):
        if isinstance(answer, LMError) and not isinstance(answer, (Transient, Truncated)):
            raise answer
        replies.append(answer if isinstance(answer, Reply) else None)
    return replies


def _check(client: Client, role: str, template: str, fields: Sequence[str]) -> None:
    if role not in client.lms:
        raise ValueError(f"role={role!r} has no model; roles are {', '.join(sorted(client.lms))}.")
    lacking = [field for field in fields if field not in template]
    if lacking:
        raise ValueError(f"the template lacks {', '.join(lacking)}.")
