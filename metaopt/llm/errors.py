"""What can go wrong with a language model, as types; a failure never becomes a text to score."""

from __future__ import annotations


class LMError(RuntimeError):
    """A request got no complete answer.

    Args:
        message: what happened.
        role: who was asked.
    """

    def __init__(self, message: str, role: str = "") -> None:
        super().__init__(message)
        self.role = role


class Transient(LMError):
    """Worth another try: too many requests, a server's fault, a timeout, a lost connection.

    Args:
        after: seconds that the server asks to wait, or `None`.
    """

    def __init__(self, message: str, role: str = "", after: float | None = None) -> None:
        super().__init__(message, role)
        self.after = after


class Rejected(LMError):
    """The server will never answer this request: bad request, bad credentials, unknown model."""


class Truncated(LMError):
    """The answer arrived damaged: no JSON, no choice, no text. It may have been paid for."""


class PolicyRefusal(LMError):
    """A content policy stopped the request: a signal to stop, never retried around."""


class BudgetSpent(LMError):
    """The request would cost more than what is left of a budget; it was not sent."""


class CassetteMiss(LMError):
    """A replay holds no answer to the request."""


class NotUnderstood(LMError):
    """A model answers, and its answers hold nothing of what was asked for."""
