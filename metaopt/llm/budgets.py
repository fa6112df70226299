"""What the language models have cost, by role and by round, and the most that they may."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metaopt.llm.cassette import Use

UNITS = ("lm_calls", "lm_requests", "tokens")
"""Answers that were used, requests that were sent for them (failed ones too), and tokens."""

ALL = ""
"""The account of all roles together."""

Limits = Mapping[str, float | None]


class Cost(NamedTuple):
    """An amount of each of `UNITS`, in their order."""

    calls: float = 0
    requests: float = 0
    tokens: float = 0

    def plus(self, other: Cost, sign: int = 1) -> Cost:
        """Return the sum by unit."""
        return Cost(*(a + sign * b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Cost) -> Cost:
        """Return the difference by unit."""
        return self.plus(other, -1)


NOTHING = Cost()


class Budgets:
    """Charges uses and requests, holds reservations, and says what still fits.

    What a request may cost is reserved before it is sent, with an upper guess of its tokens, and
    replaced with what it did cost. It fits when charged + reserved + cost <= limit for the role and
    for all roles together.

    Args:
        limits: most in all, by unit; `None` sets no limit. lm_requests bounds everything that is
            sent, tries that fail included; where it is not given, it is as many as lm_calls.
        roles: the same for single roles.

    Raises:
        ValueError: an unknown unit, or a limit that is not above 0.
    """

    def __init__(self, limits: Limits, roles: Mapping[str, Limits]) -> None:
        self._limits = {ALL: _checked(limits, "limits")}
        for role, most in roles.items():
            self._limits[role] = _checked(most, f"budget[{role!r}]")
        self.clear()

    def clear(self) -> None:
        """Forget every charge and reservation."""
        self.used: set[str] = set()
        self.round: int | None = None
        self._charged: dict[str, Cost] = defaultdict(Cost)
        self._reserved: dict[str, Cost] = defaultdict(Cost)
        self._rounds: dict[int | None, Cost] = defaultdict(Cost)

    def refusal(self, role: str, cost: Cost = NOTHING) -> str | None:
        """Return why a further cost does not fit, or `None` where it does.

        Without a cost: why what is reserved does not fit any more, since tries have failed.
        """
        for account in (ALL, role):
            if account not in self._limits:
                continue
            charged, reserved = self._charged[account], self._reserved[account]
            for i, unit in enumerate(UNITS):
                most = self._limits[account][i]
                if charged[i] + reserved[i] + cost[i] > most:
                    return (
                        f"the budget of {most:g} {unit}{f' for {role}' if account else ''} is "
                        f"spent: {charged[i]:g} used, and a request to {role} may need "
                        f"{cost[i] or reserved[i]:g} more"
                    )
        return None

    def reserve(self, role: str, cost: Cost) -> None:
        """Hold what a request may cost."""
        _add_to(self._reserved, (ALL, role), cost)

    def release(self, role: str, cost: Cost) -> None:
        """Give a reservation back."""
        _add_to(self._reserved, (ALL, role), Cost().minus(cost))

    def charge(self, use: Use) -> None:
        """Charge the first use of an answer; a second one is free."""
        if use.key not in self.used:
            self.used.add(use.key)
            self.spend(use.role, Cost(calls=1, tokens=sum(use.usage)), use.round)

    def spend(self, role: str, cost: Cost, number: int | None) -> None:
        """Charge what was sent in round `number`; a negative cost corrects a charge."""
        _add_to(self._charged, (ALL, role), cost)
        _add_to(self._rounds, (number,), cost)

    def begin(self, number: int) -> None:
        """Start a round; uses that have none yet belong to it."""
        _add_to(self._rounds, (number,), self._rounds.pop(None, Cost()))
        self.round = number

    def end(self, number: int) -> dict[str, float]:
        """Return the cost of round `number` by unit; later ones belong to the round after it."""
        self.round = number + 1
        return _named(self._rounds[number])

    def require(self, calls: Mapping[str, int], tokens: int, paid: Sequence[str]) -> None:
        """Refuse a budget that does not last for further calls, or a paid role that has none.

        Args:
            calls: least calls by role that make a result.
            tokens: least tokens of them all.
            paid: roles whose answers may cost something.

        Raises:
            ValueError: names the budget, its value and what is needed.
        """
        each = ", ".join(f"{role} {n:,}" for role, n in calls.items() if n)
        for role in paid:
            if min(self._limits[ALL] + self._limits.get(role, ())) == float("inf"):
                raise ValueError(
                    f"the model of {role} may cost something, so it needs a budget: limits, such "
                    f"as {{lm_calls: 20000}}, or budget={{{role}: {{lm_calls: 20000}}}}. One outer "
                    f"step takes at least {sum(calls.values()):,} calls ({each})."
                )
        needs = [
            (account, unit, needed, f"{needed:,} calls ({each})")
            for account, needed in [*calls.items(), (ALL, sum(calls.values()))]
            for unit in (0, *([1] if account in paid else []))
        ]
        sent = sum(calls.get(role, 0) for role in paid)
        needs += [(ALL, 1, sent, f"{sent:,} requests ({each})")]
        needs += [(ALL, 2, tokens, f"{tokens:,} tokens")]
        for account, unit, needed, words in needs:
            most = self._limits[account][unit] if account in self._limits else float("inf")
            if self._charged[account][unit] + needed > most:
                name = f"budget.{account}" if account else "limits"
                raise ValueError(
                    f"{name}.{UNITS[unit]}={most:g} is too small for one outer step, which takes "
                    f"at least {words}; raise it, or ask for fewer candidates."
                )

    def spent(self, role: str | None = None) -> dict[str, float]:
        """Return what was charged to a role, or to all together, by unit."""
        return _named(self._charged[role or ALL])


def _named(cost: Cost) -> dict[str, float]:
    """Return a cost by unit; without requests where none was sent, as of simulated models."""
    named = dict(zip(UNITS, map(float, cost), strict=True))
    return named if cost.requests else {k: v for k, v in named.items() if k != "lm_requests"}


def _add_to(accounts: dict[Any, Cost], names: Sequence[Any], cost: Cost) -> None:
    for name in names:
        accounts[name] = accounts[name].plus(cost)


def _checked(limits: Limits, name: str) -> tuple[float, ...]:
    if not isinstance(limits, Mapping):
        raise TypeError(f"{name} must be a mapping such as {{lm_calls: 1000}}; got {limits!r}.")
    for unit, most in limits.items():
        if unit not in UNITS:
            raise ValueError(f"{name} names the unit {unit!r}; units are {', '.join(UNITS)}.")
        if most is not None and (isinstance(most, (str, bool)) or not most > 0):
            raise ValueError(f"{name}[{unit!r}] must be above 0, or null for none; got {most}.")
    given = {"lm_requests": limits.get("lm_calls"), **limits}
    return tuple(
        float("inf") if most is None else most for most in (given.get(unit) for unit in UNITS)
    )
