"""Bounds on what a server may send back, whatever it announces."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from metaopt.llm.errors import Truncated

MOST_BYTES = 2**24
"""Longest body of a reply; one of 100,000 tokens takes less than a megabyte."""


def bounded(client_class: type, most: int = MOST_BYTES) -> Callable[[Any], Awaitable[None]]:
    """Return a hook for the responses of an HTTP client, which refuses what no reply is.

    A body is cut off at `most` bytes, and one that is compressed is not read at all: none is asked
    for, and a small one may unpack to any size.

    Args:
        client_class: openai's class of clients, whose base says which HTTP library it is built on.
        most: bytes of a body.
    """
    http: Any = importlib.import_module(client_class.__mro__[1].__module__.partition(".")[0])

    class Bounded(http.AsyncByteStream):  # type: ignore[misc] # of a library known at run time
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._stream:
                size += len(chunk)
                if size > most:
                    raise Truncated(f"The answer is longer than {most:,} bytes.")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def check(response: Any) -> None:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise Truncated("The answer is compressed, which was not asked for.")
        response.stream = Bounded(response.stream)

    return check
