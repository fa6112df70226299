"""A language model whose answers are a function, for worlds in which the truth is known."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence

from metaopt.llm.chat import (
    Likelihood,
    Message,
    Parameters,
    Reply,
    Usage,
    begun,
    chosen,
)
from metaopt.llm.errors import Transient

FAILURES = 3
"""Most failures of one request; the next attempt succeeds whatever the error rate."""

CHARACTERS_PER_TOKEN = 4


Choose = Callable[[str, Sequence[Message], Sequence[str], int], Sequence[float]]


class SimulatedLM:
    """Answers by a function of the request; the order and the number at once make no difference.

    Args:
        answer: `answer(role, messages, key) -> text`. `key` is an integer in [0, 2^63) that is a
            hash of the whole request, role and seed: seed all randomness with it.
        model: name of the model; the seed is appended, since it decides the answers.
        error_rate: probability in [0, 1] that an attempt fails with `Transient`, a function of
            `key` and the attempt's index; after three failures the next attempt succeeds.
        seed: another seed is another world.
        choose: `choose(role, messages, choices, key) -> probabilities`, one in [0, 1] for each of
            `Parameters.choices`, at most 1 together. `None` answers by `answer`: the choice that
            is its text has probability 1, and every other 0.

    `messages` end with the prefill where there is one, as a message of the assistant.

    Raises:
        ValueError: an error rate that is not a probability.

    Cost: one hash of the request in addition to `answer`; no network, nothing is recorded.
    """

    deterministic = True

    def __init__(
        self,
        answer: Callable[[str, Sequence[Message], int], str],
        model: str = "simulated",
        error_rate: float = 0.0,
        seed: int = 0,
        choose: Choose | None = None,
    ) -> None:
        if not 0 <= error_rate <= 1:
            raise ValueError(f"error_rate must be in [0, 1]; got {error_rate}.")
        self.model = f"{model}/{seed}"
        self.error_rate = error_rate
        self.seed = seed
        self._answer, self._choose = answer, choose
        self._attempts: dict[int, int] = {}

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        """Return the function's answer; four characters count as a token, a choice as one.

        Raises:
            Transient: at the rate `error_rate`; it may be tried again at once.
            ValueError: `choose` returned no probabilities.
        """
        messages = begun(messages, parameters.prefill)
        turns = [(m["role"], m["content"]) for m in messages]
        key = _hash([self.seed, role, turns, parameters.to_dict(), rollout])
        if self.error_rate:
            self._fail(key, role)
        read = sum(len(content) for _, content in turns) // CHARACTERS_PER_TOKEN
        if parameters.choices:
            likelihoods = self._likelihoods(role, messages, parameters.choices, key)
            usage = Usage(read + len(likelihoods), 0)
            return chosen(parameters.choices, likelihoods, usage, self.model)
        text = self._answer(role, messages, key)
        return Reply(text, Usage(read, len(text) // CHARACTERS_PER_TOKEN), "stop", self.model)

    def _likelihoods(
        self, role: str, messages: Sequence[Message], choices: Sequence[str], key: int
    ) -> list[Likelihood]:
        if self._choose is None:
            text = self._answer(role, messages, key)
            probabilities: Sequence[float] = [float(text == choice) for choice in choices]
        else:
            probabilities = self._choose(role, messages, choices, key)
        right = len(probabilities) == len(choices) and all(0 <= p <= 1 for p in probabilities)
        if not right or sum(probabilities) > 1 + 1e-9:
            raise ValueError(
                f"choose must return a probability for each of {len(choices)} choices, at most 1 "
                f"together; got {list(probabilities)}."
            )
        return [Likelihood(math.log(p) if p else -math.inf) for p in probabilities]

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def _fail(self, key: int, role: str) -> None:
        attempt = self._attempts.get(key, 0)
        if attempt < FAILURES and _hash([key, attempt]) < self.error_rate * 2**63:
            self._attempts[key] = attempt + 1
            raise Transient(f"simulated failure of attempt {attempt}", role, after=0.0)
        self._attempts.pop(key, None)


_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def _hash(value: object) -> int:
    digest = hashlib.sha256(_encode(value).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # below 2^63, as `answer` is promised
