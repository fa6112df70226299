"""What the language models have cost, by role and by round, and the most that they may."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from metaopt.llm.cassette import Use
from metaopt.llm.chat import Usage

UNITS = ("lm_calls", "tokens")

ALL = ""
"""The account of all roles together."""

Limits = Mapping[str, float | None]


class Budgets:
    """Charges first uses, holds reservations, and says what still fits.

    A request is reserved with an upper guess before it is sent and charged with what it cost. It
    fits when charged + reserved + guess <= limit for the role and for all roles together.

    Args:
        limits: most in all, by unit ("lm_calls", "tokens"); `None` is no limit.
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
        self._charged: dict[str, list[float]] = defaultdict(lambda: [0, 0])
        self._reserved: dict[str, list[float]] = defaultdict(lambda: [0, 0])
        self._rounds: dict[int | None, list[float]] = defaultdict(lambda: [0, 0])

    def refusal(self, role: str, guess: Usage) -> str | None:
        """Return why a request does not fit, or `None` where it does."""
        for account in (ALL, role):
            if account not in self._limits:
                continue
            charged, reserved = self._charged[account], self._reserved[account]
            for i, amount in enumerate((1, sum(guess))):
                most = self._limits[account][i]
                if charged[i] + reserved[i] + amount > most:
                    return (
                        f"the budget of {most:g} {UNITS[i]}"
                        f"{f' for {role}' if account else ''} is spent: {charged[i]:g} used, and a "
                        f"request to {role} may need {amount:g} more"
                    )
        return None

    def reserve(self, role: str, guess: Usage) -> None:
        """Hold an upper guess of a request's cost."""
        self._add(self._reserved, role, 1, sum(guess))

    def release(self, role: str, guess: Usage) -> None:
        """Give a reservation back."""
        self._add(self._reserved, role, -1, -sum(guess))

    def charge(self, use: Use) -> None:
        """Charge the first use of an answer; a second one is free."""
        if use.key in self.used:
            return
        self.used.add(use.key)
        self._add(self._charged, use.role, 1, sum(use.usage))
        _add_to(self._rounds[use.round], 1, sum(use.usage))

    def begin(self, number: int) -> None:
        """Start a round; uses that have none yet belong to it."""
        _add_to(self._rounds[number], *self._rounds.pop(None, (0, 0)))
        self.round = number

    def end(self, number: int) -> dict[str, float]:
        """Return the cost of round `number` by unit; later uses belong to the round after it."""
        self.round = number + 1
        return dict(zip(UNITS, map(float, self._rounds[number]), strict=True))

    def require(self, calls: Mapping[str, int], tokens: int, paid: Sequence[str]) -> None:
        """Refuse a budget that does not last for these calls, or a paid role that has none.

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
        needs = [(role, 0, needed, f"{needed:,} calls ({each})") for role, needed in calls.items()]
        needs.append((ALL, 0, sum(calls.values()), f"{sum(calls.values()):,} calls ({each})"))
        needs.append((ALL, 1, tokens, f"{tokens:,} tokens"))
        for account, unit, needed, words in needs:
            most = self._limits[account][unit] if account in self._limits else float("inf")
            if needed > most:
                name = f"budget.{account}" if account else "limits"
                raise ValueError(
                    f"{name}.{UNITS[unit]}={most:g} is too small for one outer step, which takes "
                    f"at least {words}; raise it, or ask for fewer candidates."
                )

    def spent(self, role: str | None = None) -> dict[str, float]:
        """Return what was charged to a role, or to all together, by unit."""
        return dict(zip(UNITS, map(float, self._charged[role or ALL]), strict=True))

    def _add(
        self, accounts: dict[str, list[float]], role: str, calls: float, tokens: float
    ) -> None:
        for name in (ALL, role):
            _add_to(accounts[name], calls, tokens)


def _add_to(account: list[float], calls: float, tokens: float) -> None:
    account[0] += calls
    account[1] += tokens


def _checked(limits: Limits, name: str) -> tuple[float, ...]:
    if not isinstance(limits, Mapping):
        raise TypeError(f"{name} must be a mapping such as {{lm_calls: 1000}}; got {limits!r}.")
    for unit, most in limits.items():
        if unit not in UNITS:
            raise ValueError(f"{name} names the unit {unit!r}; units are {', '.join(UNITS)}.")
        if most is not None and (isinstance(most, (str, bool)) or not most > 0):
            raise ValueError(f"{name}[{unit!r}] must be above 0, or null for none; got {most}.")
    return tuple(
        float("inf") if most is None else most for most in (limits.get(unit) for unit in UNITS)
    )
