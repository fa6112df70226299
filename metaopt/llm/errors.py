"""What can go wrong with a language model, as types; a failure never becomes a text to score."""

from __future__ import annotations

from typing import ClassVar


class LMError(RuntimeError):
    """A request got no complete answer.

    Args:
        message: what happened.
        role: who was asked.
        kind: the failure in two or three words, under which it is counted; `None` takes the type's.
        billed: whether the vendor may ask money for it: the tokens it may have cost are charged;
            `None` takes the type's.
        sent: whether the request can have reached the vendor.
        retry: whether another try at once may mend it; if not, only a later run asks again; `None`
            takes the type's.
        after: seconds that the server asks to wait before that, or `None`.
        remote: whether a server was asked, and not a model in this process.
    """

    usual_kind: ClassVar[str] = "failure"
    usually_billed: ClassVar[bool] = False
    usually_retried: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        role: str = "",
        *,
        kind: str | None = None,
        billed: bool | None = None,
        sent: bool = True,
        retry: bool | None = None,
        after: float | None = None,
        remote: bool = True,
    ) -> None:
        super().__init__(message)
        self.role, self.sent, self.after, self.remote = role, sent, after, remote
        self.kind = kind or self.usual_kind
        self.billed = self.usually_billed if billed is None else billed
        self.retry = self.usually_retried if retry is None else retry


class Transient(LMError):
    """Worth another try: too many requests, a server's fault, a timeout, a lost connection."""

    usual_kind, usually_retried = "transient failure", True


class Truncated(Transient):
    """The answer arrived damaged: no JSON, no choice, no text. It may have to be paid for."""

    usual_kind, usually_billed = "damaged answer", True


class Rejected(LMError):
    """The server will never answer this request: bad request, bad credentials, unknown model."""

    usual_kind = "rejected"


class Unsupported(Rejected):
    """The model cannot do at all what is asked of it, so that nothing like it is asked again."""

    usual_kind = "unsupported"


class PolicyRefusal(LMError):
    """A content policy stopped the request: a signal to stop, never retried around."""

    usual_kind = "policy refusal"


class BudgetSpent(LMError):
    """The request would cost more than what is left of a budget; it was not sent."""


class CassetteMiss(LMError):
    """A replay holds no answer to the request."""


class NotUnderstood(LMError):
    """A model answers, and its answers hold nothing of what was asked for."""
