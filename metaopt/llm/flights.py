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


class Flights:
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
        self._flights: dict[str, Flight] = {}
        self._news = asyncio.Event()

    def start(self, flight: Flight, work: Coroutine[Any, Any, Answer]) -> Task:
        """Reserve what a request may cost, and begin to work on it."""

        def landed(_: Task) -> None:
            del self.tasks[flight.key], self._flights[flight.key]
            self._release(flight)

        self._budgets.reserve(flight.request.role, flight.held)
        task = asyncio.create_task(work)
        task.add_done_callback(landed)
        self.tasks[flight.key], self._flights[flight.key] = task, flight
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

    async def clear(self, flight: Flight) -> None:
        """Return when a try is its turn and has its reservation.

        Raises:
            BudgetSpent: it does not fit, or another one took its place.
        """
        if flight.stage == PAUSED:
            await self._reserve_again(flight)
        while flight.stage == UNSENT and WAITING in self._stages():
            await self._news.wait()
        if flight.stage == REFUSED:
            raise BudgetSpent(f"{self.stop}; nothing more is sent", flight.request.role)

    def depart(self, flight: Flight, sending: Sending) -> None:
        """Turn the reservation of a try into its charge."""
        self._budgets.release(flight.request.role, flight.attempt_cost)
        flight.held = flight.held.minus(flight.attempt_cost)
        flight.sending, flight.stage = sending, SPEAKING

    def drop_unsent(self) -> None:
        """Cancel the work on everything but what a model has and is about to answer."""
        for key, task in self.tasks.items():
            if self._flights[key].stage != SPEAKING:
                task.cancel()

    def halted(self, role: str) -> LMError:
        """Return the failure of a request that is not sent, since the exchange has stopped."""
        stop = self.stop or BudgetSpent("stopped")
        return type(stop)(f"{stop}; nothing more is sent", role)

    async def _reserve_again(self, flight: Flight) -> None:
        role, cost = flight.request.role, flight.attempt_cost
        self._budgets.reserve(role, cost)
        flight.held, flight.stage = flight.held.plus(cost), WAITING
        while reason := self._budgets.refusal(role):
            if SPEAKING in self._stages() or PAUSED in self._stages():
                await self._news.wait()
                continue
            self.stop = self.stop or BudgetSpent(reason, role)
            refused = self._last_unsent(role) or flight
            refused.stage = REFUSED
            self._release(refused)
            if refused is flight:
                return
        flight.stage = PAUSED
        self._tell()

    def _last_unsent(self, role: str) -> Flight | None:
        """Return the request whose reservation helps another try of a role, or `None`."""
        roles = {role} if self._budgets.refusal(ALL) is None else None
        unsent = [
            flight
            for flight in self._flights.values()
            if flight.stage == UNSENT and (roles is None or flight.request.role in roles)
        ]
        return unsent[-1] if unsent else None

    def _stages(self) -> set[str]:
        return {flight.stage for flight in self._flights.values()}

    def _release(self, flight: Flight) -> None:
        """Give back what is reserved for a request."""
        self._budgets.release(flight.request.role, flight.held)
        flight.held = NOTHING
        self._tell()

    def _tell(self) -> None:
        """Let those that wait look again."""
        self._news.set()
        self._news = asyncio.Event()
