"""A batch of requests, answered, or refused where a result would be that of an outage."""

from __future__ import annotations

from collections.abc import Sequence

from metaopt.llm import (
    BudgetSpent,
    CassetteMiss,
    Client,
    LMError,
    PolicyRefusal,
    Reply,
    Request,
    Unsupported,
)


def ask(client: Client, requests: Sequence[Request]) -> list[Reply | None]:
    """Return the replies; `None` in the place of a failure.

    Raises:
        CassetteMiss: a replay holds no answer to one of them.
        Unsupported: the model cannot do what is asked, as tell probabilities.
        LMError: some met a failure that passes, again and again, or more than half of three or
            more failed, other than by a policy or a budget: a result would be that of an outage.
            What was answered is kept, and a resumed run asks for the rest.
    """
    replies = client.ask_all(requests)
    failures = [reply for reply in replies if isinstance(reply, LMError)]
    for failure in failures:
        if isinstance(failure, (CassetteMiss, Unsupported)):
            raise failure
    stopping = any(isinstance(f, (BudgetSpent, PolicyRefusal)) for f in failures)
    if 2 * len(failures) > len(replies) >= 3 and not stopping:
        role, count = requests[0].role, f"{len(failures)} of {len(replies)}"
        words = f"{role}: {count} requests failed: {failures[0]}"
        raise LMError(words, role, remote=failures[0].remote)
    return [None if isinstance(reply, LMError) else reply for reply in replies]


def whole(reply: Reply | None) -> str | None:
    """Return a reply's text; `None` of a failure and where the text was cut at its length."""
    return None if reply is None or reply.finish == "length" else reply.text


def whole_lines(reply: Reply | None) -> str:
    """Return a reply's text without a last line that was cut; nothing of a failure."""
    if reply is None or reply.finish != "length":
        return "" if reply is None else reply.text
    return reply.text.rpartition("\n")[0]
