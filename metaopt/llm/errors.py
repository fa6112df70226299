"""What can go wrong with a language model, as types; a failure never becomes a text to score."""

from __future__ import annotations


class LMError(RuntimeError):
    """A request got no complete answer.

    Args:
        message: what happened.
        role: who was asked.
        kind: the failure in two or three words, under which it is counted; `None` takes the type's.
        billed: whether the vendor may ask money for it: the tokens it may have cost are charged.
        sent: whether the request can have reached the vendor.
    """

    default_kind = "failure"

    def __init__(
        self,
        message: str,
        role: str = "",
        kind: str | None = None,
        billed: bool = False,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.role, self.kind = role, kind or self.default_kind
        self.billed, self.sent = billed, sent


class Transient(LMError):
    """Worth another try: too many requests, a server's fault, a timeout, a lost connection.

    Args:
        after: seconds that the server asks to wait, or `None`.
    """

    default_kind = "transient failure"
    retry = True

    def __init__(
        self,
        message: str,
        role: str = "",
        after: float | None = None,
        kind: str | None = None,
        billed: bool = False,
        sent: bool = True,
    ) -> None:
        super().__init__(message, role, kind, billed, sent)
        self.after = after


class Truncated(Transient):
    """The answer arrived damaged: no JSON, no choice, no text. It may have to be paid for.

    Args:
        retry: whether another try at once may mend it; if not, only a later run asks again.
    """

    default_kind = "damaged answer"

    def __init__(
        self, message: str, role: str = "", after: float | None = None, retry: bool = True
    ) -> None:
        super().__init__(message, role, after, billed=True)
        self.retry = retry


class Rejected(LMError):
    """The server will never answer this request: bad request, bad credentials, unknown model."""

    default_kind = "rejected"


class PolicyRefusal(LMError):
    """A content policy stopped the request: a signal to stop, never retried around."""

    default_kind = "policy refusal"


class BudgetSpent(LMError):
    """The request would cost more than what is left of a budget; it was not sent."""


class CassetteMiss(LMError):
    """A replay holds no answer to the request."""


class NotUnderstood(LMError):
    """A model answers, and its answers hold nothing of what was asked for."""
