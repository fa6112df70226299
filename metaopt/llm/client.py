"""The client of the language models: batches, cassette, budget and texts, for synchronous code."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from metaopt.files.writing import refuse_link
from metaopt.llm.accounts import Accounts
from metaopt.llm.budgets import Budgets, Limits
from metaopt.llm.cassette import Cassette
from metaopt.llm.chat import LM, LocalLM, Request
from metaopt.llm.errors import LMError, Transient
from metaopt.llm.exchange import Exchange
from metaopt.llm.pace import Pace
from metaopt.llm.pending import Answer

MODES = {
    "live": "answers are kept in the run's private file",
    "record": "answers are read from the cassette and added to it",
    "replay": "answers are read from the cassette; nothing is sent",
}

SUFFIX = ".cassette"
"""What follows the name of a run's folder in the name of its private file."""

REFERENCE_DIGITS = 16
"""Hexadecimal digits of a text's sha256 that a checkpoint or a log holds in place of the text."""

_process_texts: dict[str, str] = {}
"""Texts of clients without a run. References are hashes, so all clients of a process share them."""


class Client:
    """Language models by role, with a cassette, a budget, retries and a pace.

    An answer is a call (lm_calls), charged with what it cost when the run first uses it, whether it
    was just sent, recorded or replayed; using it again is free. So an uninterrupted run, one that
    was killed and resumed, and a replay report the same calls and stop at the same request, where
    no request fails and no answer costs more than its guess (`metaopt.llm.estimate`).

    What is sent is a request (lm_requests), charged before it is sent: each try of a call, and what
    was under way when the process was killed; a recorded answer counts as the one that it took. A
    limit on requests, which is the one on calls where it is not given, bounds what a vendor ever
    receives from the run, resumes included. A failed
    request that a vendor may bill (a timeout, a lost connection, a damaged answer) costs its guess
    in tokens. Failures are recorded nowhere, and a resumed run asks again; only a refusal by a
    content policy is kept, and met again, since asking again would go around it.

    Args:
        lms: the model of each role.
        mode: "live", "record" or "replay"; see `MODES`.
        cassette: file of answers for record and replay, shared by runs; another run's private
            file (`<folder>.cassette`) may be replayed.
        concurrency: most requests in flight.
        requests_per_minute: most requests sent in a minute, or `None`.
        tokens_per_minute: most tokens in a minute, or `None`.
        attempts: most tries of one request, the first included.
        limits: most in all, by unit ("lm_calls", "lm_requests", "tokens"); `None` sets no limit,
            and lm_requests is as many as lm_calls where it is not given.
        budget: the same for single roles.

    Raises:
        ValueError, TypeError: an argument out of its range; each names itself. Or the weights of a
            model of this process cannot be read, which all but a replay needs.
        FileNotFoundError: they are to be fetched first.

    Cost: two commits for each request, one for a whole batch where the model is deterministic.
    """

    def __init__(
        self,
        lms: Mapping[str, LM],
        mode: str = "live",
        cassette: str | Path | None = None,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        attempts: int = 6,
        limits: Limits | None = None,
        budget: Mapping[str, Limits] | None = None,
    ) -> None:
        self.lms = _checked(lms)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        if (cassette is None) != (mode == "live"):
            raise ValueError(
                f"mode={mode} needs a cassette, the file of answers."
                if cassette is None
                else "mode=live takes no cassette: a run has a file of its own; use mode=record."
            )
        for role in budget or {}:
            self._known(role, "budget")
        self.mode = mode
        self._cassette = None if cassette is None else Path(cassette)
        self._budgets = Budgets(limits or {}, budget or {})
        self._accounts = Accounts(self._budgets, Cassette())
        self._folder: Path | None = None
        self._closed = False
        self._starting = threading.Lock()
        self._background: Background | None = None
        self._exchange = Exchange(
            self.lms,
            self._accounts,
            self._recorded(),
            mode == "replay",
            concurrency,
            attempts,
            Pace(requests_per_minute, tokens_per_minute),
        )
        if mode != "replay":
            # Here, where nothing is written yet: a folder that is not there is one mistake, and not
            # the failure of every request.
            for lm in self.lms.values():
                if isinstance(lm, LocalLM):
                    lm.load()

    @property
    def stopped(self) -> str | None:
        """Why nothing more is sent, a refusal by a content policy or a spent budget; or `None`.

        What the run has asked before is still answered; after a refusal, so is what a cassette
        holds.
        """
        stop = self._exchange.pending.stop
        return None if stop is None else str(stop)

    @property
    def sent(self) -> dict[str, int]:
        """Requests that really went to a model in this process, by role, retries included."""
        return dict(self._exchange.sent)

    @property
    def failed(self) -> dict[str, int]:
        """Requests of the run that failed, by kind of failure, the most frequent first."""
        return dict(self._accounts.failed.most_common())

    def failures(self) -> list[str]:
        """Return a line that says how many requests failed, and how; none where none did."""
        kinds = self.failed
        if not kinds:
            return []
        listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
        sent, failed = self.spent()["lm_requests"], sum(kinds.values())
        return [f"requests: {sent:,.0f}, of which {failed:,} failed ({listed})"]

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the reply to each request, in their order, or the failure in its place.

        Whatever was paid for is committed before this returns, also when it is interrupted: what
        was sent by then is waited for, ten seconds at most, and what was not is not sent.

        Raises:
            ValueError: a role without a model; nothing was sent.
            RuntimeError: the client is closed.
        """
        for request in requests:
            if request.role not in self.lms:
                self._known(request.role, "a request")
        loop = self._loop()
        batch = loop.submit(self._exchange.batch(requests))
        try:
            answers: list[Answer] = batch.result()
        except BaseException:
            if batch.cancel():
                loop.submit(self._exchange.drain()).result()
            raise
        return answers

    def ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return what `ask` does, where no request is left to a failure that passes.

        Requests of which every try met a server's fault, a timeout or a damaged answer are asked
        once more together. A result without them would be that of an outage.

        Raises:
            LMError: some met one again. What was answered is on record, and a resumed run asks for
                the rest.
        """
        answers = self.ask(requests)
        failed = _passing(answers)
        if failed:
            second = self.ask([requests[i] for i in failed])
            for i, answer in zip(failed, second, strict=True):
                answers[i] = answer
            failed = _passing(answers)
        if failed:
            role, first = requests[failed[0]].role, answers[failed[0]]
            count = f"{len(failed)} of {len(requests)}"
            raise LMError(f"{role}: {count} requests failed: {first}", role)
        return answers

    def open(self, folder: Path) -> None:
        """Keep answers, uses and texts in the private file of a run, `<folder>.cassette`.

        The file lies next to the run's folder, so that the folder holds no text. What was asked
        and kept before is added to it; what it holds counts as asked by this run.

        Raises:
            ValueError: the file is none of ours, or a symbolic link.
        """
        folder = folder.resolve()
        path = folder.with_name(folder.name + SUFFIX)
        for end in ("", "-wal", "-shm", "-journal"):  # what sqlite writes
            refuse_link(path.with_name(path.name + end))
        run_file = Cassette(path)
        if self._folder is None:
            self._accounts.file.copy_to(run_file)
        self._accounts.file.close()
        self._accounts.open(run_file)
        self._folder = folder
        if self._closed:
            self._exchange.shared, self._closed = self._recorded(), False
        self._exchange.pending.stop = None

    def close(self) -> None:
        """Wait for what is in flight; give the models, the thread and the files back.

        What was spent stays readable; only another `open` lets the client ask again.
        """
        if self._closed:
            return
        loop = self._loop()
        try:
            loop.submit(self._exchange.close()).result()
        finally:
            loop.stop()
            self._background, self._closed = None, True
            self._accounts.file.close()
            self._accounts.file, self._folder = Cassette(), None
            if self._exchange.shared is not None:
                self._exchange.shared.close()

    def begin(self, number: int) -> None:
        """Start outer round `number`; costs since the last `end`, or since `open`, belong to it."""
        self._budgets.begin(number)
        self._accounts.file.assign(number)

    def end(self, number: int) -> dict[str, float]:
        """End a round and return its cost: lm_calls, tokens, and lm_requests where any was sent."""
        return self._budgets.end(number)

    def require(self, calls: Mapping[str, int], tokens: int = 0) -> None:
        """Refuse a budget that does not last for one outer step, or a paid role without one.

        Args:
            calls: least further calls by role that make a result.
            tokens: least tokens of them all.

        Raises:
            ValueError: names the budget, its value and what is needed.
        """
        paid = [role for role, lm in self.lms.items() if not lm.deterministic]
        self._budgets.require(calls, tokens, paid)

    def spent(self, role: str | None = None) -> dict[str, float]:
        """Return what the run was charged for a role, or for all of them."""
        if role is not None:
            self._known(role, "spent")
        return self._budgets.spent(role)

    def keep(self, text: str) -> str:
        """Return a reference to a text, which is kept where the run's folder does not show it."""
        ref = hashlib.sha256(text.encode()).hexdigest()[:REFERENCE_DIGITS]
        self._accounts.file.keep(ref, text)
        if self._folder is None:
            _process_texts[ref] = text
        return ref

    def text(self, ref: str) -> str:
        """Return the text of a reference.

        Raises:
            LookupError: neither the run's private file nor this process holds it.
        """
        run_file = self._accounts.file
        text = run_file.text(ref)
        text = _process_texts.get(ref) if text is None else text
        if text is None:
            raise LookupError(
                f"{run_file.path or 'this process'} has no text {ref}; a run is resumed with the "
                f".cassette file next to its folder."
            )
        return text

    def _recorded(self) -> Cassette | None:
        return None if self._cassette is None else Cassette(self._cassette, self.mode == "replay")

    def _known(self, role: str, what: str) -> None:
        if role not in self.lms:
            raise ValueError(
                f"{what} names the role {role!r}; roles are {', '.join(sorted(self.lms))}."
            )

    def _loop(self) -> Background:
        if self._closed:
            raise RuntimeError("the client is closed; open(folder) lets it ask again.")
        with self._starting:
            if self._background is None:
                self._background = Background()
            return self._background


def _passing(answers: Sequence[Answer]) -> list[int]:
    """Return the places of failures that another try may mend."""
    return [i for i, a in enumerate(answers) if isinstance(a, Transient) and a.retry]


def _checked(lms: Mapping[str, LM]) -> dict[str, LM]:
    if not lms:
        raise ValueError("lms needs a language model for at least one role.")
    for role, lm in lms.items():
        if not isinstance(lm, LM):
            raise TypeError(
                f"lms[{role!r}] must have model, deterministic, chat and close; got "
                f"{type(lm).__name__}."
            )
    return dict(lms)


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
        # A client that nobody closes must not keep its thread.
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
