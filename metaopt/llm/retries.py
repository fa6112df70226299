"""When a request is tried again: on `Transient` only, after a wait that grows and is random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from metaopt.llm.errors import Transient

FIRST_S = 1.0
LONGEST_S = 60.0
PATIENCE_S = 600.0
"""A server that asks to wait longer than this gets no further try."""

_backoff = wait_random_exponential(multiplier=FIRST_S, max=LONGEST_S)


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
        retry=retry_if_exception_type(Transient),
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
