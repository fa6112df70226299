"""An event loop on a thread of its own, so that synchronous code can await."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class Background:
    """One event loop that lives until `stop`, whether or not the caller has a loop of its own.

    Connections of an HTTP client are bound to the loop that opened them, hence a single one.
    """

    def __init__(self) -> None:
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_serve, args=(loop,), name="metaopt-llm", daemon=True
        )
        self._thread.start()
        self._loop = loop
        self._end = weakref.finalize(self, _stop, loop, self._thread)

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start `work` on the loop.

        Raises:
            RuntimeError: called from the loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a language model asked its own client, which waits for it.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """End the loop and its thread."""
        self._end()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if threading.current_thread() is not thread:
        thread.join()
