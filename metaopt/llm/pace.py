"""Requests and tokens per minute, evenly spread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from metaopt.llm.chat import Usage


class Pace:
    """Two leaky buckets: a request starts when those before it have drained.

    n requests (tokens) take n / per_minute of a minute, so that no 60 seconds hold more than
    per_minute of them beside the one that ends the window; there is no burst at the start.

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
        self._clock = clock
        self._sleep = sleep

    async def wait(self, guess: Usage) -> None:
        """Return when a request of this size may be sent; first come, first served."""
        now = self._clock()
        start = max(now, *self._free)
        for i, amount in enumerate((1, sum(guess))):
            if self._seconds[i]:
                self._free[i] = start + amount * self._seconds[i]
        if start > now:
            await self._sleep(start - now)

    def settle(self, guess: Usage, usage: Usage) -> None:
        """Correct the tokens of a request by what its reply says."""
        self._free[1] += (sum(usage) - sum(guess)) * self._seconds[1]
