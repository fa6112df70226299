"""From requests to answers: who is asked, what is shared, and what is charged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, cast

from metaopt.llm.budgets import Budgets
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
    budget -> one of `concurrency` slots -> pace -> model, tried again on `Transient` -> commit ->
    charge. Requests are admitted in their order; one that does not fit the budget waits until
    those before it are charged, and is then refused. Answers that a model gives as a function of
    the request are computed during admission, one after the other, and recorded nowhere. What a
    server rejected is not asked again in this process; it is not recorded, since a key or a name
    may be mended before the next one.

    Args:
        lms: the model of each role.
        budgets: charges and limits.
        run_file: the run's private file: uses, and answers unless they are shared.
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
        budgets: Budgets,
        run_file: Cassette,
        shared: Cassette | None,
        replay: bool,
        concurrency: int,
        attempts: int,
        pace: Pace,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1; got {concurrency}.")
        self.run_file = run_file
        self.shared = shared
        self.stop: LMError | None = None
        self.sent = dict.fromkeys(lms, 0)
        self._lms = lms
        self._budgets = budgets
        self._replay = replay
        self._attempts = attempts
        self._retrying = retrying(attempts)
        self._pace = pace
        self._concurrency = concurrency
        self._renew()
        self._flying: dict[str, Task] = {}
        self._speaking: set[str] = set()
        self._rejected: dict[str, Rejected] = {}

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
            if key not in self._speaking:
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
            self.run_file.use(uses)
        for answer in answers.values():
            if isinstance(answer, PolicyRefusal):
                self._refused(answer.role)

    async def _admit(self, key: str, request: Request, uses: list[Use]) -> Answer | Task:
        lm, role, guess = self._lms[request.role], request.role, estimate(request)
        if key in self._rejected:
            return self._rejected[key]
        recorded = None if lm.deterministic else (self.shared or self.run_file).answer(key)
        first = key not in self._budgets.used
        if first and (refusal := await self._refusal(role, guess)):
            return refusal
        if recorded is None:
            if self.stop is not None and (first or not lm.deterministic):
                return _halted(self.stop, role)
            if not lm.deterministic and not self._replay:
                return self._start(key, request, guess)
            recorded = await self._compute(request) if lm.deterministic else _miss(key, role)
        if first and isinstance(recorded, RECORDED):
            use = Use(key, role, _usage(recorded, guess), self._budgets.round)
            self._budgets.charge(use)
            uses.append(use)
        return recorded

    async def _refusal(self, role: str, guess: Usage) -> LMError | None:
        """Return why a request cannot be afforded even once those in flight are charged."""
        while not isinstance(self.stop, BudgetSpent):
            reason = self._budgets.refusal(role, guess)
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

    def _start(self, key: str, request: Request, guess: Usage) -> Task:
        def landed(_: Task) -> None:
            del self._flying[key]
            self._budgets.release(request.role, guess)

        self._budgets.reserve(request.role, guess)
        task = asyncio.create_task(self._send(key, request, guess))
        task.add_done_callback(landed)
        self._flying[key] = task
        return task

    async def _send(self, key: str, request: Request, guess: Usage) -> Answer:
        answer: Answer | None
        try:
            async with self._slots:
                answer = await self._retrying.copy()(self._attempt, key, request, guess)
        except LMError as error:
            answer = error
        if answer is None:
            return _halted(cast(LMError, self.stop), request.role)
        if isinstance(answer, PolicyRefusal):
            self._refused(request.role)
        if isinstance(answer, Rejected):
            self._rejected[key] = answer
        if isinstance(answer, RECORDED):
            return self._commit(key, request.role, answer, guess)
        return answer

    async def _attempt(self, key: str, request: Request, guess: Usage) -> Reply | None:
        """Return the model's reply, or `None` where a policy stopped the exchange meanwhile."""
        await self._pace.wait(guess)
        if isinstance(self.stop, PolicyRefusal):
            return None  # not raised: a refusal would be recorded as this request's answer
        self._speaking.add(key)
        try:
            reply = await self._chat(request)
        finally:
            self._speaking.discard(key)
        self._pace.settle(guess, reply.usage)
        return reply._replace(text=reply.text.encode("utf-8", "replace").decode())

    async def _chat(self, request: Request) -> Reply:
        self.sent[request.role] += 1
        reply = await self._lms[request.role].chat(
            request.role, request.messages, request.parameters, request.rollout
        )
        if not isinstance(reply, Reply):
            raise TypeError(
                f"the language model of {request.role} must return a Reply; got "
                f"{type(reply).__name__}."
            )
        return reply

    def _commit(self, key: str, role: str, answer: Answer, guess: Usage) -> Answer:
        with self.run_file.transaction():
            answer = (self.shared or self.run_file).add(key, role, answer)
            use = Use(key, role, _usage(answer, guess), self._budgets.round)
            self.run_file.use([use])
        self._budgets.charge(use)
        return answer

    def _refused(self, role: str) -> None:
        if self.stop is None:
            self.stop = PolicyRefusal(f"a content policy refused a request to {role}", role)


INTERRUPTED = LMError("the request was interrupted before it was sent")

RECORDED: tuple[type[Reply] | type[LMError], ...] = (Reply, *FINAL.values())
"""What is recorded and charged."""


def _halted(stop: LMError, role: str) -> LMError:
    return type(stop)(f"{stop}; nothing more is sent", role)


def _usage(answer: Answer, guess: Usage) -> Usage:
    """What an answer cost; of a failure only the guess is known, and a refusal wrote nothing."""
    if isinstance(answer, Reply):
        return answer.usage
    return Usage(guess.prompt, 0) if isinstance(answer, PolicyRefusal) else guess


def _miss(key: str, role: str) -> CassetteMiss:
    return CassetteMiss(f"the cassette has no answer to request {key[:12]} to {role}", role)
