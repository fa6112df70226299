"""A language model whose answers must not be paid for twice, and requests for it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from metaopt.llm import LMError, Message, Parameters, Reply, Request, Usage, user

SECRET = "sk-not-for-the-record"


class Paid:
    """Answers by a hash, later requests sooner; writes down every call.

    Args:
        fail: the failure of a text at its n-th try, or `None`.
        log: a file that takes a line for each call, before the answer.
        delay: longest wait, in seconds.
        dead: fails the test when it is asked.
    """

    deterministic = False

    def __init__(
        self,
        fail: Callable[[str, int], BaseException | None] | None = None,
        log: Path | None = None,
        delay: float = 0.002,
        dead: bool = False,
    ) -> None:
        self.model = "paid-1"
        self.api_key = SECRET
        self.calls: list[tuple[str, int]] = []
        self.most = 0
        self.closed = 0
        self._fail = fail or (lambda text, n: None)
        self._log = log
        self._delay = delay
        self._dead = dead
        self._open = 0

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        text = messages[-1]["content"]
        if self._dead:
            raise AssertionError(f"asked for {text!r}")
        self.calls.append((text, rollout))
        if self._log:
            with self._log.open("a") as file:
                file.write(f"{text} {rollout}\n")
        self._open += 1
        self.most = max(self.most, self._open)
        digest = hashlib.sha256(f"{text} {rollout}".encode()).hexdigest()
        await asyncio.sleep(self._delay * int(digest[:2], 16) / 255)
        self._open -= 1
        error = self._fail(text, sum(call == (text, rollout) for call in self.calls))
        if error is not None:
            raise error
        return Reply(f"answer {digest}", Usage(len(text) // 4 + 5, int(digest[2], 16)), "stop", "m")

    async def close(self) -> None:
        self.closed += 1


def requests(n: int, role: str = "target", rollout: int = 0, start: int = 0) -> list[Request]:
    short = Parameters(max_tokens=16)
    return [Request(role, user(f"question {i}"), short, rollout) for i in range(start, start + n)]


def failures(answers: Sequence[Reply | LMError]) -> list[str]:
    return [type(a).__name__ if isinstance(a, LMError) else "" for a in answers]
