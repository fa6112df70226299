"""From requests to answers: who is asked, what is shared, and what is charged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from metaopt.llm.accounts import Accounts, Sending
from metaopt.llm.budgets import NOTHING, Cost
from metaopt.llm.cassette import FINAL, Cassette, Use
from metaopt.llm.chat import LM, Reply, Request, Usage, estimate
from metaopt.llm.errors import (
    BudgetSpent,
    CassetteMiss,
    LMError,
    PolicyRefusal,
    Rejected,
    Transient,
)
from metaopt.llm.pace import Pace, retrying

GRACE_S = 10.0
"""How long an interrupted batch waits for answers to what was already sent."""

Answer: TypeAlias = Reply | LMError
Task: TypeAlias = "asyncio.Task[Answer]"


class Exchange:
    """Answers batches of requests; everything here runs on one event loop.

    A request goes: shared with an identical one in flight -> cassette -> reservation of its
    budget -> one of `concurrency` slots -> pace -> charge -> model, tried again on `Transient` ->
    commit. Requests are admitted in their order; one that does not fit the budget waits until those
    before it are charged, and is then refused. Every try is charged before it is sent. Another one
    goes before requests that were not sent yet: where it does not fit once nothing on its way can
    give budget back, it takes the place of the last of them, which is refused. Answers that a model
    gives as a function of the request are computed during admission, one after the other, and
    recorded nowhere. What a server rejected is not asked again in this process; it is not recorded,
    since a key or a name may be mended before the next one.

    Args:
        lms: the model of each role.
        accounts: what is charged, and the run's private file: requests, uses, and answers unless
            they are shared.
        shared: answers for several runs, or `None`.
        replay: answers come from `shared` only.
        concurrency: most requests in flight.
        attempts: most tries of a request.
        pace: what is sent waits for it.

    Attributes:
        stop: the failure after which nothing more is sent, or `None`.
        sent: requests that went to a model, by role.
    """

    def __init__(
        self,
        lms: Mapping[str, LM],
        accounts: Accounts,
        shared: Cassette | None,
        replay: bool,
        concurrency: int,
        attempts: int,
        pace: Pace,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1; got {concurrency}.")
        self.shared = shared
        self.stop: LMError | None = None
        self.sent = dict.fromkeys(lms, 0)
        self._lms = lms
        self._accounts, self._budgets = accounts, accounts.budgets
        self._replay = replay
        self._attempts = attempts
        self._retrying = retrying(attempts)
        self._pace = pace
        self._concurrency = concurrency
        self._renew()
        self._flying: dict[str, Task] = {}
        self._flights: dict[str, Flight] = {}
        self._rejected: dict[str, Rejected] = {}
        self._models: dict[str, list[str]] = {}

    async def batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Return an answer to each request, in their order."""
        keys = [self._key(request) for request in requests]
        answers: dict[str, Answer] = {}
        tasks: dict[str, Task] = {}
        try:
            await self._admit_all(zip(keys, requests, strict=True), answers, tasks)
        finally:
            if tasks:
                await asyncio.wait(tasks.values())
        done = {key: task for key, task in tasks.items() if not task.cancelled()}
        for bug in filter(None, [task.exception() for task in done.values()]):
            raise bug
        answers |= dict.fromkeys(tasks, INTERRUPTED)
        answers |= {key: task.result() for key, task in done.items()}
        return [answers[key] for key in keys]

    async def drain(self) -> None:
        """Wait for what was sent, and drop what was not."""
        for key, task in self._flying.items():
            if self._flights[key].stage != SPEAKING:
                task.cancel()
        if self._flying:
            await asyncio.wait(self._flying.values(), timeout=GRACE_S)

    async def close(self) -> None:
        """Let what was sent end, and give the models back; another loop may follow."""
        await self.drain()
        for task in self._flying.values():
            task.cancel()
        if self._flying:
            await asyncio.wait(self._flying.values())
        for lm in {id(lm): lm for lm in self._lms.values()}.values():
            await lm.close()
        self._renew()

    def _renew(self) -> None:
        self._slots = asyncio.Semaphore(self._concurrency)
        self._news = asyncio.Event()
        self._admission = asyncio.Lock()

    def _key(self, request: Request) -> str:
        """The answer of a deterministic model may depend on the role, so its key does too."""
        lm = self._lms[request.role]
        return request.key(f"{lm.model} as {request.role}" if lm.deterministic else lm.model)

    async def _admit_all(
        self,
        keyed: Iterable[tuple[str, Request]],
        answers: dict[str, Answer],
        tasks: dict[str, Task],
    ) -> None:
        """Answer what can be answered at once and start the rest."""
        uses: list[Use] = []
        try:
            async with self._admission:
                for key, request in keyed:
                    if key in answers or key in tasks:
                        continue
                    answer = self._flying.get(key) or await self._admit(key, request, uses)
                    if isinstance(answer, asyncio.Task):
                        tasks[key] = answer
                    else:
                        answers[key] = answer
        finally:
            self._accounts.file.use(uses)
        for answer in answers.values():
            if isinstance(answer, PolicyRefusal):
                self._refused(answer.role)

    async def _admit(self, key: str, request: Request, uses: list[Use]) -> Answer | Task:
        lm, role, guess = self._lms[request.role], request.role, estimate(request)
        if key in self._rejected:
            return self._rejected[key]
        recorded = None if lm.deterministic else self._record.answer(key)
        first = not self._accounts.used(key)
        send = recorded is None and not lm.deterministic and not self._replay
        cost = Cost(first, not lm.deterministic, sum(guess))
        if (first or send) and (refusal := await self._refusal(role, cost)):
            return refusal
        if recorded is None:
            if self.stop is not None and (first or not lm.deterministic):
                return _halted(self.stop, role)
            if send:
                return self._start(Flight(key, request, guess, cost))
            recorded = await self._compute(request) if lm.deterministic else _miss(key, role)
        if first and isinstance(recorded, RECORDED):
            if not lm.deterministic:
                self._accounts.recorded(role)
            uses.append(self._accounts.use(key, role, recorded, guess))
        return recorded

    async def _refusal(self, role: str, cost: Cost) -> LMError | None:
        """Return why a request cannot be afforded even once those in flight are charged."""
        while not isinstance(self.stop, BudgetSpent):
            reason = self._budgets.refusal(role, cost)
            if reason is None:
                return None
            if self._flying:
                await asyncio.wait(self._flying.values(), return_when=asyncio.FIRST_COMPLETED)
            else:
                self.stop = BudgetSpent(reason, role)
        return _halted(self.stop, role)

    async def _compute(self, request: Request) -> Answer:
        """Ask a deterministic model: free, so neither paced nor held back between tries."""
        failure: LMError = INTERRUPTED
        for _ in range(self._attempts):
            try:
                return await self._chat(request)
            except Transient as error:
                failure = error
            except LMError as error:
                return error
        return failure

    def _start(self, flight: Flight) -> Task:
        def landed(_: Task) -> None:
            del self._flying[flight.key], self._flights[flight.key]
            self._release(flight)

        self._budgets.reserve(flight.request.role, flight.held)
        task = asyncio.create_task(self._send(flight))
        task.add_done_callback(landed)
        self._flying[flight.key], self._flights[flight.key] = task, flight
        return task

    def _release(self, flight: Flight) -> None:
        """Give back what is reserved for a request."""
        self._budgets.release(flight.request.role, flight.held)
        flight.held = NOTHING
        self._tell()

    def _tell(self) -> None:
        """Let those that wait look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def _send(self, flight: Flight) -> Answer:
        answer: Answer | None = None
        try:
            async with self._slots:
                async for attempt in self._retrying.copy():
                    with attempt:
                        answer = await self._attempt(flight)
        except LMError as error:
            answer = error
        role = flight.request.role
        if answer is None:
            return _halted(cast(LMError, self.stop), role)
        if isinstance(answer, PolicyRefusal):
            self._refused(role)
        if isinstance(answer, Rejected):
            self._rejected[flight.key] = answer
        return self._commit(flight, answer) if isinstance(answer, RECORDED) else answer

    async def _attempt(self, flight: Flight) -> Reply | None:
        """Return the model's reply, or `None` where a policy stopped the exchange meanwhile."""
        request, guess = flight.request, flight.guess
        if flight.stage == UNSENT:
            await self._let_pass()
        elif flight.stage == PAUSED:
            await self._reserve_again(flight)
        await self._pace.wait(guess)
        if isinstance(self.stop, PolicyRefusal):
            return None  # not raised: a refusal would be recorded as this request's answer
        if flight.stage == REFUSED:
            raise _halted(cast(LMError, self.stop), request.role)
        self._budgets.release(request.role, flight.attempt_cost)
        flight.held = flight.held.minus(flight.attempt_cost)
        flight.sending, flight.stage = self._accounts.send(request.role, guess), SPEAKING
        try:
            reply = await self._chat(request)
        except BaseException as error:
            flight.sending.failed(error)
            if isinstance(error, Transient):
                self._pace.hold(error.after)
            raise
        finally:
            flight.stage = PAUSED
        self._pace.settle(guess, reply.usage)
        self._notice(request.role, reply.model)
        return reply._replace(text=reply.text.encode("utf-8", "replace").decode())

    def _notice(self, role: str, model: str) -> None:
        """Warn, once for each, of answers by another model than the first ones."""
        known = self._models.setdefault(role, [])
        if model not in known:
            known.append(model)
            if len(known) > 1:
                logging.getLogger(__name__).warning(
                    "%s: an answer came from %r, those before from %r; they are used together.",
                    role,
                    model,
                    known[0],
                )

    async def _let_pass(self) -> None:
        """Wait while other requests wait to be tried again."""
        while any(other.stage == WAITING for other in self._flights.values()):
            await self._news.wait()

    async def _reserve_again(self, flight: Flight) -> None:
        """Reserve another try; wait for what those on their way give back.

        Raises:
            BudgetSpent: it does not fit, and neither would it in place of those not yet sent.
        """
        role, cost = flight.request.role, flight.attempt_cost
        self._budgets.reserve(role, cost)
        flight.held, flight.stage = flight.held.plus(cost), WAITING
        while reason := self._budgets.refusal(role):
            stages = [other.stage for other in self._flights.values()]
            if SPEAKING in stages or PAUSED in stages:
                await self._news.wait()
                continue
            self.stop = self.stop or BudgetSpent(reason, role)
            unsent = [f for f in self._flights.values() if f.stage == UNSENT]
            refused = unsent[-1] if unsent else flight
            refused.stage = REFUSED
            self._release(refused)
            if refused is flight:
                raise _halted(self.stop, role)
        flight.stage = PAUSED
        self._tell()

    async def _chat(self, request: Request) -> Reply:
        self.sent[request.role] += 1
        try:
            reply = await self._lms[request.role].chat(
                request.role, request.messages, request.parameters, request.rollout
            )
        except LMError as error:
            self.sent[request.role] -= not error.sent
            raise
        if not isinstance(reply, Reply):
            raise TypeError(
                f"the language model of {request.role} must return a Reply; got "
                f"{type(reply).__name__}."
            )
        return reply

    def _commit(self, flight: Flight, answer: Answer) -> Answer:
        key, role = flight.key, flight.request.role
        with self._accounts.file.transaction():
            if isinstance(answer, Reply) and flight.sending is not None:
                flight.sending.answered()
            answer = self._record.add(key, role, answer)
            self._accounts.file.use([self._accounts.use(key, role, answer, flight.guess)])
        return answer

    @property
    def _record(self) -> Cassette:
        """The file of answers."""
        return self.shared or self._accounts.file

    def _refused(self, role: str) -> None:
        if self.stop is None:
            self.stop = PolicyRefusal(f"a content policy refused a request to {role}", role)


UNSENT, SPEAKING, PAUSED, WAITING, REFUSED = "unsent", "speaking", "paused", "waiting", "refused"


@dataclass
class Flight:
    """A request from its admission to its answer.

    Args:
        key: the request's.
        request: what is asked.
        guess: most tokens of one try.
        held: what is reserved for it now.
        sending: the try under way, or the last one; `None` before the first.
        stage: `UNSENT`, `SPEAKING` (sent, not answered), `PAUSED` (between two tries), `WAITING`
            (for the budget of another try), or `REFUSED`.
    """

    key: str
    request: Request
    guess: Usage
    held: Cost
    sending: Sending | None = None
    stage: str = UNSENT

    @property
    def attempt_cost(self) -> Cost:
        """The most that one try costs, until its answer is used."""
        return Cost(requests=1, tokens=sum(self.guess))


INTERRUPTED = LMError("the request was interrupted before it was sent")

RECORDED: tuple[type[Reply] | type[LMError], ...] = (Reply, *FINAL.values())
"""What is recorded and charged."""


def _halted(stop: LMError, role: str) -> LMError:
    return type(stop)(f"{stop}; nothing more is sent", role)


def _miss(key: str, role: str) -> CassetteMiss:
    return CassetteMiss(f"the cassette has no answer to request {key[:12]} to {role}", role)
