"""What is said to a language model, and what it answers: the values of the LM layer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple, Protocol, runtime_checkable

Message = Mapping[str, str]
"""One turn of a conversation: `role` (system, user, assistant) and `content`."""


@dataclass(frozen=True)
class Parameters:
    """How an answer is drawn, or among which texts it is chosen.

    Args:
        temperature: 0 takes the likeliest token, 1 samples from the model.
        max_tokens: longest answer, in tokens.
        top_p: smallest set of tokens of this probability is sampled from; 1 is all.
        stop: texts that end the answer.
        choices: texts of which the likeliest is the answer; nothing is written, and the reply has
            the model's probability of each (`Reply.probabilities`). None begins another one, since
            "1" would be as likely as "10" and all else that it begins.
        prefill: the beginning of the answer, which the model goes on from; a reply has the rest.

    Raises:
        ValueError: a number outside its range; choices that are empty or begin one another, or that
            are given with a temperature, top_p or stop, which they take no part in.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    prefill: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.max_tokens < 1 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"Parameters needs temperature >= 0, max_tokens >= 1 and 0 < top_p <= 1; got "
                f"temperature={self.temperature}, max_tokens={self.max_tokens}, "
                f"top_p={self.top_p}."
            )
        if self.choices:
            self._check_choices()

    def _check_choices(self) -> None:
        texts = not isinstance(self.choices, str) and all(isinstance(c, str) for c in self.choices)
        if not texts or not all(self.choices):
            raise ValueError(
                f"choices must be texts that are not empty, such as ('yes', 'no'); got "
                f"{self.choices!r}."
            )
        for first, second in permutations(self.choices, 2):
            if second.startswith(first):
                raise ValueError(
                    f"choices must not begin one another, as {first!r} begins {second!r}: the "
                    "first would get the probability of both. Take others, such as digits or "
                    "letters."
                )
        if self.temperature or self.top_p < 1 or self.stop:
            raise ValueError(
                "choices take temperature=0, top_p=1 and no stop: nothing is sampled; got "
                f"temperature={self.temperature}, top_p={self.top_p}, stop={self.stop}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that decide an answer: all, but of choices and prefill those given."""
        unset = {name for name in ("choices", "prefill") if not getattr(self, name)}
        return {name: value for name, value in vars(self).items() if name not in unset}


class Usage(NamedTuple):
    """Tokens read (`prompt`) and written (`completion`) for one answer."""

    prompt: int = 0
    completion: int = 0


class Likelihood(NamedTuple):
    """How likely a model is to write a text.

    Args:
        log_probability: natural logarithm of the text's probability, the sum over its tokens.
        tokens: number of its tokens, >= 1.
    """

    log_probability: float
    tokens: int = 1

    @property
    def mean(self) -> float:
        """The log probability of a token."""
        return self.log_probability / self.tokens


class Reply(NamedTuple):
    """A complete answer; a failure is an exception and never a `Reply`.

    Args:
        text: what the model wrote, or the likeliest of the choices.
        usage: what it cost.
        finish: why it ended: "stop", or "length" when `max_tokens` cut it off.
        model: the model that answered, as it names itself.
        likelihoods: of each of `Parameters.choices`, in their order.
    """

    text: str
    usage: Usage = Usage()
    finish: str = "stop"
    model: str = ""
    likelihoods: tuple[Likelihood, ...] = ()

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probability of each choice, in their order; their sum, the mass, is at most 1."""
        return tuple(math.exp(choice.log_probability) for choice in self.likelihoods)


def chosen(
    choices: Sequence[str], likelihoods: Sequence[Likelihood], usage: Usage, model: str
) -> Reply:
    """Return the reply of the likeliest choice, the first of equally likely ones."""
    likeliest = max(zip(likelihoods, choices, strict=True), key=lambda pair: pair[0][0])
    return Reply(likeliest[1], usage, "stop", model, tuple(likelihoods))


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
            "parameters": self.parameters.to_dict(),
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
        """Return one answer; of a request with choices, the likelihood of each.

        Raises:
            LMError: whatever went wrong; see `metaopt.llm.errors` for the kinds.
        """
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


@runtime_checkable
class LocalLM(LM, Protocol):
    """A language model whose weights this process reads before it can answer."""

    def load(self) -> None:
        """Read the weights, unless they are there.

        Raises:
            ValueError, FileNotFoundError: they cannot be read; says what can.
        """
        ...


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def user(text: str) -> tuple[Message, ...]:
    """Return a conversation of one question."""
    return ({"role": "user", "content": text},)


def begun(messages: Sequence[Message], prefill: str) -> tuple[Message, ...]:
    """Return the conversation whose last message, of the assistant, begins the answer.

    A last message that already does is continued.
    """
    if not prefill:
        return tuple(messages)
    *before, last = messages
    if last["role"] != "assistant":
        return (*messages, {"role": "assistant", "content": prefill})
    return (*before, {**last, "content": last["content"] + prefill})


def estimate(request: Request) -> Usage:
    """Return an upper guess of a request's tokens: one for three bytes of UTF-8, and the cap.

    Choices are read, and nothing but one token of them is written.
    """
    parameters = request.parameters
    texts = [*(m["content"] for m in request.messages), parameters.prefill, *parameters.choices]
    size = sum(len(text.encode()) for text in texts)
    return Usage(
        size // 3 + 8 * len(request.messages) + len(parameters.choices),
        1 if parameters.choices else parameters.max_tokens,
    )
