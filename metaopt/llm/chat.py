"""What is said to a language model, and what it answers: the values of the LM layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

Message = Mapping[str, str]
"""One turn of a conversation: `role` (system, user, assistant) and `content`."""


@dataclass(frozen=True)
class Parameters:
    """How an answer is drawn.

    Args:
        temperature: 0 takes the likeliest token, 1 samples from the model.
        max_tokens: longest answer, in tokens.
        top_p: smallest set of tokens of this probability is sampled from; 1 is all.
        stop: texts that end the answer.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_tokens < 1 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"Parameters needs temperature >= 0, max_tokens >= 1 and 0 < top_p <= 1; got "
                f"temperature={self.temperature}, max_tokens={self.max_tokens}, "
                f"top_p={self.top_p}."
            )


class Usage(NamedTuple):
    """Tokens read (`prompt`) and written (`completion`) for one answer."""

    prompt: int = 0
    completion: int = 0


class Reply(NamedTuple):
    """A complete answer; a failure is an exception and never a `Reply`.

    Args:
        text: what the model wrote.
        usage: what it cost.
        finish: why it ended: "stop", or "length" when `max_tokens` cut it off.
        model: the model that answered, as it names itself.
    """

    text: str
    usage: Usage = Usage()
    finish: str = "stop"
    model: str = ""


@dataclass(frozen=True)
class Request:
    """One question to one role.

    Args:
        role: who is asked: target, judge, optimizer, template, checker, ...
        messages: the conversation.
        parameters: how the answer is drawn.
        rollout: index of the draw; another index is another, independent answer.
    """

    role: str
    messages: Sequence[Message]
    parameters: Parameters = field(default_factory=Parameters)
    rollout: int = 0

    def key(self, model: str) -> str:
        """Return the sha256 of model, messages, parameters and rollout: what answers it.

        The role is left out: two roles that ask the same model the same share the answer.
        """
        content = {
            "model": model,
            "messages": [dict(m) for m in self.messages],
            "parameters": vars(self.parameters),
            "rollout": self.rollout,
        }
        return hashlib.sha256(_encode(content).encode()).hexdigest()


@runtime_checkable
class LM(Protocol):
    """A language model.

    Attributes:
        model: names the model and whatever else decides its answers, but no credentials.
        deterministic: the answer is a function of the request, so it need not be recorded.
    """

    model: str
    deterministic: bool

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        """Return one answer.

        Raises:
            LMError: whatever went wrong; see `metaopt.llm.errors` for the kinds.
        """
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def user(text: str) -> tuple[Message, ...]:
    """Return a conversation of one question."""
    return ({"role": "user", "content": text},)


def estimate(request: Request) -> Usage:
    """Return an upper guess of a request's tokens: one for three bytes of UTF-8, and the cap."""
    size = sum(len(m["content"].encode()) for m in request.messages)
    return Usage(size // 3 + 8 * len(request.messages), request.parameters.max_tokens)
