"""Asks language models many things at once, pays for each once, and keeps within a budget."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import TypeAlias

from metaopt.llm.background import Background
from metaopt.llm.budgets import Budgets, Limits
from metaopt.llm.cassette import FINAL, Cassette, Use
from metaopt.llm.chat import LM, Reply, Request, Usage, estimate
from metaopt.llm.errors import (
    BudgetSpent,
    CassetteMiss,
    LMError,
    PolicyRefusal,
    Transient,
)
from metaopt.llm.pace import Pace
from metaopt.llm.retries import retrying

MODES = {
    "live": "answers are kept in the run's private file",
    "record": "answers are read from the cassette and added to it",
    "replay": "answers are read from the cassette; nothing is sent",
}

GRACE_S = 10.0
"""How long an interrupted batch waits for answers to what was already sent."""

REFERENCE = 16
"""Hexadecimal digits of a text's reference."""

Answer: TypeAlias = Reply | LMError

SUFFIX = ".cassette"
"""What the name of a run's folder is followed by in the name of its private file."""

INTERRUPTED = LMError("the request was interrupted before it was sent")

_texts: dict[str, str] = {}
"""Texts kept by clients that no folder was opened for."""


class Client:
    """The synchronous face of the language models of a problem, by role.

    A request goes: shared with an identical one in flight -> cassette -> reservation of its
    budget -> one of `concurrency` slots -> pace -> model, tried again on `Transient` -> commit ->
    charge. A request is charged when the run first uses its answer, with what the answer cost,
    whether it was just sent, recorded, or replayed; using it again is free. So an uninterrupted
    run, one that was killed and resumed, and a replay report the same costs. This holds for the
    stop on a budget too: requests are admitted in the order in which they are asked, and one that
    does not fit waits for those before it to be charged before it is refused.

    Args:
        lms: the model of each role.
        mode: "live", "record" or "replay"; see `MODES`.
        cassette: file of recorded answers, for record and replay; another run's private file
            (`<folder>.cassette`) may be replayed.
        concurrency: most requests in flight.
        requests_per_minute: most requests sent in a minute, or `None`.
        tokens_per_minute: most tokens in a minute, or `None`.
        attempts: most tries of one request, the first included.
        limits: most in all, by unit ("lm_calls", "tokens"); `None` is no limit.
        budget: the same for single roles.

    Attributes:
        stopped: why nothing more is sent (a refusal by a content policy, a spent budget), or
            `None`.
        sent: what really went to a model in this process, by role, retries included.

    Raises:
        ValueError, TypeError: an argument out of its range; each names itself.

    Cost: about 40 microseconds a request beside the model, and a commit for each that is not
    deterministic.
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
        if not lms:
            raise ValueError("lms needs a language model for at least one role.")
        for role, lm in lms.items():
            if not isinstance(lm, LM):
                raise TypeError(
                    f"lms[{role!r}] must have model, deterministic, chat and close; got "
                    f"{type(lm).__name__}."
                )
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        if (cassette is None) != (mode == "live"):
            raise ValueError(
                f"mode={mode} needs a cassette, the file of answers."
                if cassette is None
                else "mode=live takes no cassette: a run has a file of its own; use mode=record."
            )
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1; got {concurrency}.")
        unknown = sorted(set(budget or {}) - set(lms))
        if unknown:
            raise ValueError(
                f"budget names the role {unknown[0]!r}; roles are {', '.join(sorted(lms))}."
            )
        self.lms = dict(lms)
        self.mode = mode
        self.stopped: str | None = None
        self.sent = dict.fromkeys(lms, 0)
        self._stop: type[LMError] | None = None
        self._attempts = attempts
        self._retrying = retrying(attempts)
        self._pace = Pace(requests_per_minute, tokens_per_minute)
        self._budgets = Budgets(limits or {}, budget or {})
        self._concurrency = concurrency
        self._own = Cassette()
        self._path = None if cassette is None else Path(cassette)
        self._shared = self._recorded()
        self._folder: Path | None = None
        self._closed = False
        self._kept: set[str] = set()
        self._background: Background | None = None
        self._flying: dict[str, asyncio.Task[Answer]] = {}
        self._speaking: set[str] = set()

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
                raise ValueError(
                    f"a request to the role {request.role!r}; roles are "
                    f"{', '.join(sorted(self.lms))}."
                )
        loop = self._loop()
        batch = loop.submit(self._batch(requests))
        try:
            wait([batch])
        except BaseException:
            batch.cancel()
            wait([loop.submit(self._drain())])
            raise
        answers: list[Answer] = batch.result()
        return answers

    def open(self, folder: Path) -> None:
        """Keep answers, uses and texts in the private file of a run, `<folder>.cassette`.

        The file lies beside the run's folder, so that the folder holds no text. What was asked
        and kept before is added to it; what it holds counts as asked by this run.

        Raises:
            ValueError: the file is none of ours.
        """
        own = Cassette(folder.with_name(folder.name + SUFFIX))
        if self._folder is None:
            self._own.copy_to(own)
            with own.transaction():
                for ref in self._kept:
                    own.keep(ref, _texts[ref])
        self._own.close()
        self._own, self._folder, self._kept = own, folder, set()
        self._shared = self._recorded() if self._closed else self._shared
        self._closed = False
        self._stop = self.stopped = None
        self._budgets.clear()
        for use in own.uses():
            self._budgets.charge(use)

    def close(self) -> None:
        """Wait for what is in flight; give the models, the thread and the files back.

        What was spent stays readable; only another `open` lets the client ask again.
        """
        if self._closed:
            return
        loop = self._loop()
        try:
            loop.submit(self._shut()).result()
        finally:
            loop.stop()
            self._background, self._closed = None, True
            self._own.close()
            self._own, self._folder, self._kept = Cassette(), None, set()
            if self._shared is not None:
                self._shared.close()

    def begin(self, number: int) -> None:
        """Start outer round `number`; uses since the last `end`, or since `open`, belong to it."""
        self._budgets.begin(number)
        self._own.assign(number)

    def end(self) -> dict[str, float]:
        """End the round and return its cost, {"lm_calls": n, "tokens": n}, of its first uses."""
        return self._budgets.end()

    def spent(self, role: str | None = None) -> dict[str, float]:
        """Return what the run was charged for a role, or for all of them."""
        if role is not None and role not in self.lms:
            raise ValueError(f"role must be one of {', '.join(sorted(self.lms))}; got {role!r}.")
        return self._budgets.spent(role)

    def keep(self, text: str) -> str:
        """Return a reference to a text, which is kept where the run's folder does not show it."""
        ref = hashlib.sha256(text.encode()).hexdigest()[:REFERENCE]
        if ref not in self._kept:
            if self._folder is None:
                _texts[ref] = text
            else:
                self._own.keep(ref, text)
            self._kept.add(ref)
        return ref

    def text(self, ref: str) -> str:
        """Return the text of a reference.

        Raises:
            LookupError: neither the run's private file nor this process holds it.
        """
        text = self._own.text(ref) if self._folder else None
        text = _texts.get(ref) if text is None else text
        if text is None:
            where = f"{self._folder}{SUFFIX}" if self._folder else "this process"
            raise LookupError(
                f"{where} has no text {ref}; a run is resumed with the {SUFFIX} file beside its "
                f"folder."
            )
        return text

    def _recorded(self) -> Cassette | None:
        return None if self._path is None else Cassette(self._path, self.mode == "replay")

    def _loop(self) -> Background:
        if self._closed:
            raise RuntimeError("the client is closed; open(folder) lets it ask again.")
        if self._background is None:
            self._slots = asyncio.Semaphore(self._concurrency)
            self._admission = asyncio.Lock()
            self._background = Background()
        return self._background

    async def _batch(self, requests: Sequence[Request]) -> list[Answer]:
        keys = [self._key(request) for request in requests]
        found: dict[str, Answer] = {}
        tasks: dict[str, asyncio.Task[Answer]] = {}
        try:
            await self._admit_all(zip(keys, requests, strict=True), found, tasks)
        finally:
            if tasks:
                await asyncio.wait(tasks.values())
        for key, task in tasks.items():
            found[key] = INTERRUPTED if task.cancelled() else task.result()
        return [found[key] for key in keys]

    def _key(self, request: Request) -> str:
        """The answer of a deterministic model may depend on the role, so its key does too."""
        lm = self.lms[request.role]
        return request.key(f"{lm.model} as {request.role}" if lm.deterministic else lm.model)

    async def _admit_all(
        self,
        keyed: Iterable[tuple[str, Request]],
        found: dict[str, Answer],
        tasks: dict[str, asyncio.Task[Answer]],
    ) -> None:
        """Answer what can be answered at once and start the rest, in their order."""
        uses: list[Use] = []
        try:
            async with self._admission:
                for key, request in keyed:
                    if key in found or key in tasks:
                        continue
                    answer = self._flying.get(key) or await self._admit(key, request, uses)
                    if isinstance(answer, asyncio.Task):
                        tasks[key] = answer
                    else:
                        found[key] = answer
        finally:
            self._own.use(uses)
        for answer in found.values():
            if isinstance(answer, PolicyRefusal):
                self._refused(answer.role)

    async def _admit(
        self, key: str, request: Request, uses: list[Use]
    ) -> Answer | asyncio.Task[Answer]:
        lm, role, guess = self.lms[request.role], request.role, estimate(request)
        held = None if lm.deterministic else (self._shared or self._own).answer(key)
        known = key in self._budgets.used
        if not known and not await self._fits(role, guess):
            return self._halted(role)
        if held is None:
            if self._stop and not (known and lm.deterministic):
                return self._halted(role)
            if not lm.deterministic and self.mode != "replay":
                return self._start(key, request, guess)
            held = await self._simulate(request) if lm.deterministic else _miss(key, role)
        if not known and isinstance(held, (Reply, *FINAL.values())):
            use = Use(key, role, _usage(held, guess), self._budgets.round)
            self._budgets.charge(use)
            uses.append(use)
        return held

    async def _fits(self, role: str, guess: Usage) -> bool:
        """Wait for those in flight, which may cost less than was reserved, before refusing."""
        while self._stop is not BudgetSpent:
            reason = self._budgets.refusal(role, guess)
            if reason is None:
                return True
            if not self._flying:
                self._stop, self.stopped = BudgetSpent, reason
                break
            await asyncio.wait(self._flying.values(), return_when=asyncio.FIRST_COMPLETED)
        return False

    async def _simulate(self, request: Request) -> Answer:
        """Ask a deterministic model: free, so neither paced nor held back between tries."""
        failure: LMError
        for _ in range(self._attempts):
            self.sent[request.role] += 1
            try:
                return await self.lms[request.role].chat(
                    request.role, request.messages, request.parameters, request.rollout
                )
            except Transient as error:
                failure = error
            except LMError as error:
                return error
        return failure

    def _start(self, key: str, request: Request, guess: Usage) -> asyncio.Task[Answer]:
        def landed(_: asyncio.Task[Answer]) -> None:
            del self._flying[key]
            self._budgets.release(request.role, guess)

        self._budgets.reserve(request.role, guess)
        task = asyncio.create_task(self._send(key, request, guess))
        task.add_done_callback(landed)
        self._flying[key] = task
        return task

    async def _send(self, key: str, request: Request, guess: Usage) -> Answer:
        answer: Answer
        try:
            async with self._slots:
                answer = await self._retrying.copy()(self._attempt, key, request, guess)
        except _Halted:
            return self._halted(request.role)
        except LMError as error:
            answer = error
        if isinstance(answer, PolicyRefusal):
            self._refused(request.role)
        if isinstance(answer, (Reply, *FINAL.values())):
            return self._commit(key, request.role, answer, guess)
        return answer

    async def _attempt(self, key: str, request: Request, guess: Usage) -> Reply:
        if self._stop is not PolicyRefusal:
            await self._pace.wait(guess)
        if self._stop is PolicyRefusal:
            raise _Halted("not sent", request.role)
        self.sent[request.role] += 1
        self._speaking.add(key)
        try:
            reply = await self.lms[request.role].chat(
                request.role, request.messages, request.parameters, request.rollout
            )
        finally:
            self._speaking.discard(key)
        self._pace.settle(guess, reply.usage)
        return reply._replace(text=reply.text.encode("utf-8", "replace").decode())

    def _commit(self, key: str, role: str, answer: Answer, guess: Usage) -> Answer:
        with self._own.transaction():
            answer = (self._shared or self._own).add(key, role, answer)
            use = Use(key, role, _usage(answer, guess), self._budgets.round)
            self._own.use([use])
        self._budgets.charge(use)
        return answer

    def _refused(self, role: str) -> None:
        if self._stop is None:
            self._stop = PolicyRefusal
            self.stopped = f"a content policy refused a request to {role}"

    def _halted(self, role: str) -> LMError:
        assert self._stop is not None
        return self._stop(f"{self.stopped}; nothing was sent", role)

    async def _drain(self) -> None:
        """Wait for what was sent, and drop what was not."""
        for key, task in self._flying.items():
            if key not in self._speaking:
                task.cancel()
        if self._flying:
            await asyncio.wait(self._flying.values(), timeout=GRACE_S)

    async def _shut(self) -> None:
        await self._drain()
        for lm in {id(lm): lm for lm in self.lms.values()}.values():
            await lm.close()


class _Halted(LMError):
    """The client stopped while the request waited for its turn."""


def _usage(answer: Answer, guess: Usage) -> Usage:
    """What an answer cost; of a failure only the guess is known, and a refusal wrote nothing."""
    if isinstance(answer, Reply):
        return answer.usage
    return Usage(guess.prompt, 0) if isinstance(answer, PolicyRefusal) else guess


def _miss(key: str, role: str) -> CassetteMiss:
    return CassetteMiss(f"the cassette has no answer to request {key[:12]} to {role}", role)
