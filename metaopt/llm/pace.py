"""When a request is sent: at most so many a minute, and again after a transient failure."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from metaopt.llm.chat import Usage
from metaopt.llm.errors import Transient

FIRST_S = 1.0
LONGEST_S = 60.0
PATIENCE_S = 600.0
"""A server that asks to wait longer than this gets no further try."""

_backoff = wait_random_exponential(multiplier=FIRST_S, max=LONGEST_S)


class Pace:
    """Two leaky buckets: a request starts when those before it have drained.

    n requests (tokens) take n / per_minute of a minute, so that no 60 seconds hold more than
    per_minute of them in addition to the one that ends the window; there is no burst at the start.

    Args:
        requests_per_minute: most requests, or `None`.
        tokens_per_minute: most tokens read and written, or `None`; a request counts with its
            upper guess until its reply says what it was.
        clock: seconds that only grow.
        sleep: waits.

    Raises:
        ValueError: a rate that is not above 0.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        rates = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
        }
        for name, rate in rates.items():
            if rate is not None and not rate > 0:
                raise ValueError(f"{name} must be above 0, or null for none; got {rate}.")
        self._seconds = [0.0 if rate is None else 60.0 / rate for rate in rates.values()]
        self._free = [float("-inf"), float("-inf")]
        self._held = float("-inf")
        self._clock = clock
        self._sleep = sleep

    async def wait(self, guess: Usage) -> None:
        """Return when a request of this size may be sent; first come, first served.

        Raises:
            Transient: a server asked to wait longer than anybody does; nothing is sent until then.
        """
        now = self._clock()
        if self._held - now > PATIENCE_S:
            words = f"A server asked to wait another {self._held - now:,.0f} s."
            raise Transient(words, after=self._held - now, sent=False)
        start = max(now, self._held, *self._free)
        for i, amount in enumerate((1, sum(guess))):
            if self._seconds[i]:
                self._free[i] = start + amount * self._seconds[i]
        if start > now:
            await self._sleep(start - now)

    def hold(self, seconds: float | None) -> None:
        """Start nothing for the seconds that a server asked to wait, or `None`."""
        if seconds is not None:
            self._held = max(self._held, self._clock() + seconds)

    def settle(self, guess: Usage, usage: Usage) -> None:
        """Correct the tokens of a request by what its reply says."""
        self._free[1] += (sum(usage) - sum(guess)) * self._seconds[1]


def retrying(
    attempts: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncRetrying:
    """Return a policy of at most `attempts` tries of one call; the last failure is raised.

    The wait before try n + 1 is uniform in [0, min(60, 2^(n-1))] seconds ("full jitter"), or what
    the server asked for and a tenth at random on top, where it did.

    Raises:
        ValueError: `attempts` below 1.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1; got {attempts}.")
    return AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, Transient) and error.retry),
        wait=_wait,
        stop=lambda state: stop_after_attempt(attempts)(state) or (_after(state) or 0) > PATIENCE_S,
        sleep=sleep,
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    after = _after(state)
    return _backoff(state) if after is None else after * random.uniform(1.0, 1.1)


def _after(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.after if isinstance(error, Transient) else None
