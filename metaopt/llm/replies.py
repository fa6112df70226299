"""What the body of a chat completion, or of an error, says: an answer or a typed failure."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any

from metaopt.llm.chat import Reply, Request, Usage, chosen, estimate
from metaopt.llm.errors import LMError, PolicyRefusal, Rejected, Transient, Truncated
from metaopt.llm.top_logprobs import likelihoods

if TYPE_CHECKING:
    from openai import APIStatusError

REFUSALS = ("filter", "refus", "safety", "policy", "prohibited", "blocked")
"""Parts of a `finish_reason` by which servers say that a content policy stopped an answer."""

FINISHES = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "model_length", "max_tokens"), "length"),
}
"""Servers' words for why an answer is complete, or cut at its longest length."""

POLICIES = {"content_filter", "content_policy_violation", "invalid_prompt"}
POLICIES |= {"ResponsibleAIPolicyViolation"}
"""Codes of errors that mean a content policy."""

GATEWAY = {408, 502, 504, 524}
"""Status codes of a gateway that gave up on a model, which may have answered and be billed."""

LONGEST_TOKEN = 128
"""Most bytes of a token: what text there is has at least this many times fewer tokens."""

UNSEEN = 16_384
"""Most tokens that a server adds out of sight to a prompt or an answer: templates, reasoning."""

QUOTED = 16
"""A server's words that repeat this many characters of a request are not repeated here."""


def read(
    content: bytes, request: Request, model: str, key: str | None = None, where: str = "The server"
) -> Reply:
    """Return the answer in the body of a chat completion.

    A stop that the server left in the text is cut off. Tokens that the server does not count, or
    of which it counts fewer than the texts take, are guessed; where it counts more than any answer
    has, they are the most that one can have.

    Args:
        content: the body.
        request: what was asked.
        model: the answer's, where the server does not name it.
        key: a credential that must not be in the answer, though a server may echo it.
        where: the server, for messages.

    Raises:
        PolicyRefusal: the answer is a refusal or was filtered.
        Unsupported, Rejected: see `metaopt.llm.top_logprobs.likelihoods`, of a request with
            choices.
        Truncated: the body is not JSON; it holds an error, no choice, no text or half of a
            surrogate pair; or it has no known end.
    """
    role = request.role
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Truncated(f"The answer is not JSON ({len(content)} bytes).", role) from None
    body = body if isinstance(body, dict) else {}
    choice = _first(body.get("choices")) or {}
    message, ended = choice.get("message"), _clean(str(choice.get("finish_reason")), key)[:40]
    message = message if isinstance(message, dict) else {}
    refused = message.get("refusal") or any(word in ended.lower() for word in REFUSALS)
    fault = body.get("error") or choice.get("error")
    if refused or _codes(fault) & POLICIES:
        raise PolicyRefusal("A content policy stopped the answer.", role)
    if fault:  # the text beside it may be a part of the answer
        raise Truncated(f"The answer holds an error{_words(fault, request, key)}.", role)
    if not choice:
        raise Truncated("The answer holds no choice.", role)
    answered_by = body.get("model")
    named = _clean(answered_by, key) if isinstance(answered_by, str) else model
    text = message.get("content")
    if choices := request.parameters.choices:
        listed = likelihoods(choice, request, where)
        written = text if isinstance(text, str) and _encodable(text) else ""
        return chosen(choices, listed, _usage(body.get("usage"), request, written), named)
    if not isinstance(text, str) or not cut(text, request.parameters.stop).strip():
        cut_off = FINISHES.get(ended) == "length"  # as another try would be
        words = f"finish_reason={ended}{'; raise max_tokens' if cut_off else ''}"
        raise Truncated(f"The answer holds no text ({words}).", role, retry=not cut_off)
    if ended not in FINISHES:
        raise Truncated(f"The answer ended with the unknown finish_reason={ended}.", role)
    if not _encodable(text):
        raise Truncated("The answer holds half of a surrogate pair.", role)
    text = _clean(text, key)
    visible = cut(text, request.parameters.stop)
    return Reply(
        visible,
        _usage(body.get("usage"), request, text),
        FINISHES[ended] if visible == text else "stop",
        named,
    )


def cut(text: str, stops: Sequence[str]) -> str:
    """Return what comes before the first of `stops`, or all of the text where none is in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def failure(error: APIStatusError, request: Request, key: str | None) -> LMError:
    """Return what a 3xx, 4xx or 5xx answer means, in words without the key or the request's."""
    role, code = request.role, error.status_code
    codes = _codes(error.body)
    if codes & POLICIES:
        return PolicyRefusal("A content policy stopped the request.", role)
    words, kind = f"HTTP {code}{_words(error.body, request, key)}", f"HTTP {code}"
    if (code in (408, 429) or code >= 500) and "insufficient_quota" not in codes:
        after = retry_after(error.response.headers)
        return Transient(words, role, kind=kind, billed=code in GATEWAY, after=after)
    return Rejected(words, role, kind=kind)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, from Retry-After in seconds or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        day = parsedate_tz(value)
        try:
            seconds = mktime_tz(day) - time.time() if day else math.nan
        except (ValueError, OverflowError):  # of a year that no calendar has
            seconds = math.nan
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _codes(error: Any) -> set[str]:
    """Return the codes and the type of an error in the protocol's form."""
    if not isinstance(error, dict):
        return set()
    inner = error.get("innererror")
    codes = {str(error.get("code")), str(error.get("type"))}
    return codes | {str(inner.get("code"))} if isinstance(inner, dict) else codes


def _words(error: Any, request: Request, key: str | None) -> str:
    """Return what a server says of an error, unless it quotes the request."""
    words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    words = _clean(" ".join(str(words or "").split()), key)
    for message in request.messages:
        text = " ".join(message["content"].split())
        starts = range(max(len(text) - QUOTED, 0) + 1)
        if text and any(text[i : i + QUOTED] in words for i in starts):
            return " (the server's words quote the request and are left out)"
    return f": {words[:300]}" if words else ""


def _first(choices: Any) -> dict[str, Any] | None:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _clean(text: str, key: str | None) -> str:
    """Return a server's words without the key, and as text that can be written."""
    text = text.encode("utf-8", "replace").decode()
    return text.replace(key, "[key]") if key else text


def _encodable(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair, which JSON can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _usage(usage: Any, request: Request, text: str) -> Usage:
    """Return the tokens that a server counted, at most as many as there can be, or guessed.

    What only the total counts, as some servers count reasoning, is the answer's.
    """
    counts = usage if isinstance(usage, dict) else {}
    asked, said = sum(len(m["content"].encode()) for m in request.messages), len(text.encode())
    longest = max(request.parameters.max_tokens, said)
    prompt = _plausible(counts.get("prompt_tokens"), asked, asked)
    prompt = estimate(request).prompt if prompt is None else prompt
    completion = _plausible(counts.get("completion_tokens"), said, longest)
    completion = said // 3 + 1 if completion is None else completion
    total = _plausible(counts.get("total_tokens"), asked + said, prompt + longest) or 0
    return Usage(prompt, max(completion, total - prompt))


def _plausible(count: Any, size: int, most: int) -> int | None:
    """Return the count of tokens of a text of `size` bytes, or `None` where it is none.

    What a vendor may bill is never more than is returned: a count beyond `most`, seen and unseen,
    is cut there.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < -(-size // LONGEST_TOKEN):
        return None
    return min(count, most + UNSEEN)
