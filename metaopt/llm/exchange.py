"""From requests to answers: who is asked, what is shared, and what is charged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from metaopt.llm.accounts import Accounts
from metaopt.llm.budgets import Cost
from metaopt.llm.cassette import FINAL, Cassette, Use
from metaopt.llm.chat import LM, Reply, Request, estimate
from metaopt.llm.errors import CassetteMiss, LMError, PolicyRefusal, Rejected, Transient
from metaopt.llm.pace import Pace, retrying
from metaopt.llm.pending import BACKOFF, Answer, PendingRequest, PendingRequests, Task

GRACE_S = 10.0
"""How long an interrupted batch waits for answers to what was already sent."""


class Exchange:
    """Answers batches of requests; everything here runs on one event loop.

    A request goes: shared with an identical one in flight -> cassette -> reservation of its
    budget -> one of `concurrency` slots -> pace -> charge -> model, tried again on `Transient` ->
    commit. Requests are admitted in their order; one that does not fit the budget waits until those
    before it are charged, and is then refused. Every try is charged before it is sent, and reserved
    before (`PendingRequests`). Answers that a model gives as a function of the request are computed
    during admission, one after the other, and recorded nowhere. What a server rejected is not asked
    again in this process; it is not recorded, since a key or a name may be mended before the next
    one.

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
        pending: what is on its way, and why nothing more is admitted.
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
        self.pending = PendingRequests(accounts.budgets)
        self.sent = dict.fromkeys(lms, 0)
        self._lms = lms
        self._accounts = accounts
        self._replay = replay
        self._attempts = attempts
        self._retrying = retrying(attempts)
        self._pace = pace
        self._concurrency = concurrency
        self._renew()
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
        self.pending.cancel_unsent()
        if self.pending.tasks:
            await asyncio.wait(self.pending.tasks.values(), timeout=GRACE_S)

    async def close(self) -> None:
        """Let what was sent end, and give the models back; another loop may follow."""
        await self.drain()
        for task in self.pending.tasks.values():
            task.cancel()
        if self.pending.tasks:
            await asyncio.wait(self.pending.tasks.values())
        for lm in {id(lm): lm for lm in self._lms.values()}.values():
            await lm.close()
        self._renew()

    def _renew(self) -> None:
        self._slots = asyncio.Semaphore(self._concurrency)
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
                    answer = self.pending.tasks.get(key) or await self._admit(key, request, uses)
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
        if (first or send) and (refusal := await self.pending.refusal(role, cost)):
            return refusal
        if recorded is None:
            if self.pending.stop is not None and (first or not lm.deterministic):
                return self.pending.halted(role)
            if send:
                pending = PendingRequest(key, request, guess, cost)
                return self.pending.start(pending, self._send(pending))
            recorded = await self._compute(request) if lm.deterministic else _miss(key, role)
        if first and isinstance(recorded, RECORDED):
            if not lm.deterministic:
                self._accounts.recorded(role)
            uses.append(self._accounts.use(key, role, recorded, guess))
        return recorded

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

    async def _send(self, pending: PendingRequest) -> Answer:
        answer: Answer | None = None
        try:
            async with self._slots:
                async for attempt in self._retrying.copy():
                    with attempt:
                        answer = await self._attempt(pending)
        except LMError as error:
            answer = error
        role = pending.request.role
        if answer is None:
            return self.pending.halted(role)
        if isinstance(answer, PolicyRefusal):
            self._refused(role)
        if isinstance(answer, Rejected):
            self._rejected[pending.key] = answer
        return self._commit(pending, answer) if isinstance(answer, RECORDED) else answer

    async def _attempt(self, pending: PendingRequest) -> Reply | None:
        """Return the model's reply, or `None` where a policy stopped the exchange meanwhile."""
        request, guess = pending.request, pending.guess
        await self._pace.wait(guess)
        await self.pending.wait_turn(pending)
        if isinstance(self.pending.stop, PolicyRefusal):
            return None  # not raised: a refusal would be recorded as this request's answer
        sending = self._accounts.send(request.role, guess)
        self.pending.mark_sent(pending, sending)
        try:
            reply = await self._chat(request)
        except BaseException as error:
            sending.failed(error)
            if isinstance(error, Transient):
                self._pace.hold(error.after)
            raise
        finally:
            pending.stage = BACKOFF
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
        choices = request.parameters.choices
        if len(reply.likelihoods) != len(choices):
            raise TypeError(
                f"the language model of {request.role} must return the likelihood of each of the "
                f"{len(choices)} choices; got {len(reply.likelihoods)}."
            )
        return reply

    def _commit(self, pending: PendingRequest, answer: Answer) -> Answer:
        key, role = pending.key, pending.request.role
        with self._accounts.file.transaction():
            if isinstance(answer, Reply) and pending.sending is not None:
                pending.sending.answered()
            answer = self._record.add(key, role, answer)
            self._accounts.file.use([self._accounts.use(key, role, answer, pending.guess)])
        return answer

    @property
    def _record(self) -> Cassette:
        """The file of answers."""
        return self.shared or self._accounts.file

    def _refused(self, role: str) -> None:
        if self.pending.stop is None:
            words = f"a content policy refused a request to {role}"
            self.pending.stop = PolicyRefusal(words, role)


INTERRUPTED = LMError("the request was interrupted before it was sent")

RECORDED: tuple[type[Reply] | type[LMError], ...] = (Reply, *FINAL.values())
"""What is recorded and charged."""


def _miss(key: str, role: str) -> CassetteMiss:
    return CassetteMiss(
        f"the cassette has no answer to request {key[:12]} to {role}: it was recorded under "
        "another config, or not to its end. Replay with that config, or set mode=record, which "
        "asks for the rest.",
        role,
    )
