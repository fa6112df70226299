"""What a run has sent and used: on record in its private file, and charged to its budgets."""

from __future__ import annotations

from collections import Counter

from metaopt.llm.budgets import Budgets, Cost
from metaopt.llm.cassette import ANSWERED, UNKNOWN, Cassette, Sent, Use
from metaopt.llm.chat import Reply, Usage
from metaopt.llm.errors import LMError, PolicyRefusal


class Accounts:
    """Charges a run for requests when they are sent, and for answers when they are first used.

    A request is on record before it is sent, with an upper guess of its tokens, so that a process
    that is killed has paid for what was under way. When its outcome is known, the guess gives way
    to what the answer cost, stays where a failure may be billed, and is taken back where not.

    Args:
        budgets: charges and limits.
        file: the run's private file.

    Attributes:
        failed: requests that failed, by kind; "interrupted" where nobody saw the outcome.
    """

    def __init__(self, budgets: Budgets, file: Cassette) -> None:
        self.budgets, self.file = budgets, file
        self.failed: Counter[str] = Counter()

    def open(self, file: Cassette) -> None:
        """Go on with the record of a run."""
        self.file = file
        self.budgets.clear()
        self.failed.clear()
        for use in file.uses():
            self.budgets.charge(use)
        for sent in file.sent():
            self.budgets.spend(sent.role, Cost(requests=1, tokens=sent.tokens), sent.round)
            if sent.outcome != ANSWERED:
                self.failed[sent.outcome] += 1

    def used(self, key: str) -> bool:
        """Return whether the run has used the answer before, which makes it free."""
        return key in self.budgets.used

    def use(self, key: str, role: str, answer: Reply | LMError, guess: Usage) -> Use:
        """Charge the first use of an answer, and return it for the record."""
        use = Use(key, role, _usage(answer, guess), self.budgets.round)
        self.budgets.charge(use)
        return use

    def recorded(self, role: str) -> None:
        """Charge the request that the answer on record once took."""
        sent = Sent(role, 0, ANSWERED, self.budgets.round)
        self.file.send(sent)
        self.budgets.spend(role, Cost(requests=1), sent.round)

    def send(self, role: str, guess: Usage) -> Sending:
        """Record and charge a request that is about to be sent."""
        return Sending(self, role, sum(guess))


class Sending:
    """One request on its way, from just before it is sent.

    Args:
        accounts: where it is charged.
        role: who is asked.
        guess: most tokens that it may cost.
    """

    def __init__(self, accounts: Accounts, role: str, guess: int) -> None:
        self._accounts, self._role, self._guess = accounts, role, guess
        self._round = accounts.budgets.round
        self._number = accounts.file.send(Sent(role, guess, UNKNOWN, self._round))
        accounts.budgets.spend(role, Cost(requests=1, tokens=guess), self._round)

    def answered(self) -> None:
        """Take the guess back: the answer is charged where it is used."""
        self._settle(ANSWERED, billed=False)

    def failed(self, error: BaseException) -> None:
        """Count a failure; keep the guess where it may be billed, or nobody knows."""
        if isinstance(error, LMError) and not error.sent:
            self._accounts.file.unsend(self._number)
            cost = Cost(requests=-1, tokens=-self._guess)
            self._accounts.budgets.spend(self._role, cost, self._round)
        elif isinstance(error, LMError):
            self._accounts.failed[error.kind] += 1
            self._settle(error.kind, error.billed)
        else:
            self._accounts.failed[UNKNOWN] += 1

    def _settle(self, outcome: str, billed: bool) -> None:
        tokens = self._guess if billed else 0
        self._accounts.file.settle(self._number, tokens, outcome)
        self._accounts.budgets.spend(self._role, Cost(tokens=tokens - self._guess), self._round)


def _usage(answer: Reply | LMError, guess: Usage) -> Usage:
    """What an answer cost; a refusal is charged with what was read, and wrote nothing."""
    if isinstance(answer, Reply):
        return answer.usage
    return Usage(guess.prompt, 0) if isinstance(answer, PolicyRefusal) else guess
