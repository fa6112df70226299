"""Requests on their way to a model, and the budget that is held for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from metaopt.llm.accounts import Sending
from metaopt.llm.budgets import ALL, NOTHING, Budgets, Cost
from metaopt.llm.chat import Reply, Request, Usage
from metaopt.llm.errors import BudgetSpent, LMError

Answer: TypeAlias = Reply | LMError
Task: TypeAlias = "asyncio.Task[Answer]"

QUEUED, SENT, BACKOFF, WAITING, REFUSED = "queued", "sent", "backoff", "waiting", "refused"


@dataclass
class PendingRequest:
    """A request from its admission to its answer.

    Args:
        key: the request's.
        request: what is asked.
        guess: most tokens of one try.
        held: what is reserved for it now.
        sending: the try under way, or the last one; `None` before the first.
        stage: `QUEUED`, `SENT` (sent, not answered), `BACKOFF` (between two tries), `WAITING`
            (for the budget of another try), or `REFUSED`.
    """

    key: str
    request: Request
    guess: Usage
    held: Cost
    sending: Sending | None = None
    stage: str = QUEUED

    @property
    def attempt_cost(self) -> Cost:
        """The most that one try costs, until its answer is used."""
        return Cost(requests=1, tokens=sum(self.guess))


class PendingRequests:
    """Lets requests go as far as the budget lasts, each with its reservation.

    The first try of a request is reserved when it is admitted. Another one is reserved when it is
    due, and goes before requests that were not sent yet: where it does not fit once nothing on its
    way can give budget back, it takes the place of the last of them, which is refused.

    Args:
        budgets: charges and limits.

    Attributes:
        stop: the failure after which nothing more is admitted, or `None`.
        tasks: the work on each request, by its key.
    """

    def __init__(self, budgets: Budgets) -> None:
        self.stop: LMError | None = None
        self.tasks: dict[str, Task] = {}
        self._budgets = budgets
        self._pending: dict[str, PendingRequest] = {}
        self._changed = asyncio.Event()

    def start(self, pending: PendingRequest, work: Coroutine[Any, Any, Answer]) -> Task:
        """Reserve what a request may cost, and begin to work on it."""

        def done(_: Task) -> None:
            del self.tasks[pending.key], self._pending[pending.key]
            self._release(pending)

        self._budgets.reserve(pending.request.role, pending.held)
        task = asyncio.create_task(work)
        task.add_done_callback(done)
        self.tasks[pending.key], self._pending[pending.key] = task, pending
        return task

    async def refusal(self, role: str, cost: Cost) -> LMError | None:
        """Return why a request cannot be afforded even once those on their way are charged."""
        while not isinstance(self.stop, BudgetSpent):
            reason = self._budgets.refusal(role, cost)
            if reason is None:
                return None
            if self.tasks:
                await asyncio.wait(self.tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            else:
                self.stop = BudgetSpent(reason, role)
        return self.halted(role)

    async def wait_turn(self, pending: PendingRequest) -> None:
        """Return when a try is its turn and has its reservation.

        Raises:
            BudgetSpent: it does not fit, or another one took its place.
        """
        if pending.stage == BACKOFF:
            await self._reserve_again(pending)
        while pending.stage == QUEUED and WAITING in self._stages():
            await self._changed.wait()
        if pending.stage == REFUSED:
            raise BudgetSpent(f"{self.stop}; nothing more is sent", pending.request.role)

    def mark_sent(self, pending: PendingRequest, sending: Sending) -> None:
        """Turn the reservation of a try into its charge."""
        self._budgets.release(pending.request.role, pending.attempt_cost)
        pending.held = pending.held.minus(pending.attempt_cost)
        pending.sending, pending.stage = sending, SENT

    def cancel_unsent(self) -> None:
        """Cancel the work on everything but what a model has and is about to answer."""
        for key, task in self.tasks.items():
            if self._pending[key].stage != SENT:
                task.cancel()

    def halted(self, role: str) -> LMError:
        """Return the failure of a request that is not sent, since the exchange has stopped."""
        stop = self.stop or BudgetSpent("stopped")
        return type(stop)(f"{stop}; nothing more is sent", role)

    async def _reserve_again(self, pending: PendingRequest) -> None:
        role, cost = pending.request.role, pending.attempt_cost
        self._budgets.reserve(role, cost)
        pending.held, pending.stage = pending.held.plus(cost), WAITING
        while reason := self._budgets.refusal(role):
            if SENT in self._stages() or BACKOFF in self._stages():
                await self._changed.wait()
                continue
            self.stop = self.stop or BudgetSpent(reason, role)
            refused = self._last_queued(role) or pending
            refused.stage = REFUSED
            self._release(refused)
            if refused is pending:
                return
        pending.stage = BACKOFF
        self._notify()

    def _last_queued(self, role: str) -> PendingRequest | None:
        """Return the request whose reservation helps another try of a role, or `None`."""
        roles = {role} if self._budgets.refusal(ALL) is None else None
        queued = [
            pending
            for pending in self._pending.values()
            if pending.stage == QUEUED and (roles is None or pending.request.role in roles)
        ]
        return queued[-1] if queued else None

    def _stages(self) -> set[str]:
        return {pending.stage for pending in self._pending.values()}

    def _release(self, pending: PendingRequest) -> None:
        """Give back what is reserved for a request."""
        self._budgets.release(pending.request.role, pending.held)
        pending.held = NOTHING
        self._notify()

    def _notify(self) -> None:
        """Let those that wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()
