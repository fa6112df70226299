"""Likelihoods of choices in the log probabilities that a chat completion lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metaopt.files.numbers import is_number
from metaopt.llm.chat import Likelihood, Request
from metaopt.llm.errors import Rejected, Truncated, Unsupported

TOP = 20
"""Tokens that a server is asked to list, the most that the protocol knows."""

UNLISTED = 0.01
"""Share of the choices' probability that those not listed may have; they then count as 0."""

WAYS_OUT = (
    "vLLM, SGLang and llama.cpp's server answer both fields, `transformers serve` ignores them. "
    "Take such a server, or the model in this process (llm=transformers), or written scores "
    "(scoring@problem.scoring=template_evolution/written)."
)

UNTOLD = (
    "{where} answers without log probabilities, though the fields logprobs and top_logprobs asked "
    f"for them: it cannot say how likely the choices are. {WAYS_OUT}"
)
"""What is wrong with a server that drops the fields, and the ways out."""


def likelihoods(choice: Mapping[str, Any], request: Request, where: str) -> list[Likelihood]:
    """Return the likelihood of each choice as the first token of an answer.

    A choice that is not among the tokens listed has at most the probability of the last of them,
    and of those that begin it. As long as that is no more than `UNLISTED` of what the listed ones
    have together, it counts as 0.

    Args:
        choice: of the body of a chat completion, with `logprobs`.
        request: what was asked.
        where: the server, for messages.

    Raises:
        Unsupported: the server lists no log probabilities.
        Rejected: a choice that is not listed may be too likely to count as 0.
        Truncated: the answer has no token, or what is listed are no log probabilities.
    """
    role, listed = request.role, _listed(choice, request, where)
    probabilities = {text: listed.get(text, 0.0) for text in request.parameters.choices}
    rest = min(min(listed.values()), max(1 - math.fsum(listed.values()), 0.0))
    missing = [text for text in probabilities if text not in listed]
    most = math.fsum(
        rest + math.fsum(p for token, p in listed.items() if token and text.startswith(token))
        for text in missing
    )
    mass = math.fsum(probabilities.values())
    if most > UNLISTED * mass:
        raise Rejected(
            f"The server lists its {len(listed)} likeliest tokens. Of the choices, "
            f"{', '.join(repr(text[:20]) for text in missing)} are not among them and may have up "
            f"to {most:.2g} of the probability, beside {mass:.2g} of the others. A choice must be "
            "one token; lead to the choices by prefill, or take fewer.",
            role,
            kind="unlisted choices",
        )
    return [Likelihood(math.log(p) if p else -math.inf) for p in probabilities.values()]


def _listed(choice: Mapping[str, Any], request: Request, where: str) -> dict[str, float]:
    """Return the probabilities of the tokens listed for the first one, by their text."""
    role, logprobs = request.role, choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        raise Unsupported(UNTOLD.format(where=where), role, billed=True)
    if not content:
        raise Truncated("The answer ended before its first token.", role, retry=False)
    top = content[0].get("top_logprobs") if isinstance(content[0], Mapping) else None
    if not isinstance(top, list) or not top:
        raise Unsupported(UNTOLD.format(where=where), role, billed=True)
    listed: dict[str, float] = {}
    for entry in top:
        token, p = _probability(entry)
        if token is None:
            raise Truncated("The answer lists what is no log probability.", role)
        # Different tokens may have one text, as those of which half a character is shown.
        listed[token] = listed.get(token, 0.0) + p
    if math.fsum(listed.values()) > 1 + 1e-3:
        raise Truncated("The answer lists probabilities that add up to more than 1.", role)
    return listed


def _probability(entry: Any) -> tuple[str | None, float]:
    """Return the text and the probability of a token listed; no text where it has none."""
    entry = entry if isinstance(entry, Mapping) else {}
    token, log_p = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or not is_number(log_p) or not log_p <= 1e-6:
        return None, 0.0
    return token, math.exp(min(log_p, 0.0))
