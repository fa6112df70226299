"""A language model whose answers are a function, for worlds in which the truth is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from metaopt.llm.chat import Message, Parameters, Reply, Usage
from metaopt.llm.errors import Transient

FAILURES = 3
"""Most failures of one request; the next attempt succeeds whatever the error rate."""

CHARACTERS_PER_TOKEN = 4


class SimulatedLM:
    """Answers by a function of the request; the order and the number at once make no difference.

    Args:
        answer: `answer(role, messages, key) -> text`. `key` is an integer in [0, 2^63) that is a
            hash of the whole request, role and seed: seed all randomness with it.
        model: name of the model; the seed is appended, since it decides the answers.
        error_rate: probability in [0, 1] that an attempt fails with `Transient`, a function of
            `key` and the attempt's index; after three failures the next attempt succeeds.
        seed: another seed is another world.

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
    ) -> None:
        if not 0 <= error_rate <= 1:
            raise ValueError(f"error_rate must be in [0, 1]; got {error_rate}.")
        self.model = f"{model}/{seed}"
        self.error_rate = error_rate
        self.seed = seed
        self._answer = answer
        self._attempts: dict[int, int] = {}

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        """Return the function's answer; four characters count as a token.

        Raises:
            Transient: at the rate `error_rate`; it may be tried again at once.
        """
        turns = [(m["role"], m["content"]) for m in messages]
        key = _hash([self.seed, role, turns, vars(parameters), rollout])
        if self.error_rate:
            self._fail(key, role)
        text = self._answer(role, messages, key)
        read = sum(len(content) for _, content in turns) // CHARACTERS_PER_TOKEN
        return Reply(text, Usage(read, len(text) // CHARACTERS_PER_TOKEN), "stop", self.model)

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
