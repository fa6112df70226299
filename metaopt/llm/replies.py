"""What the body of a chat completion, or of an error, says: an answer or a typed failure."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any

from metaopt.llm.chat import Reply, Request, Usage, estimate
from metaopt.llm.errors import LMError, PolicyRefusal, Rejected, Transient, Truncated

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

QUOTED = 16
"""A server's words that repeat this many characters of a request are not repeated here."""


def read(content: bytes, request: Request, model: str) -> Reply:
    """Return the answer in the body of a chat completion.

    A stop that the server left in the text is cut off. Without usage from the server the tokens
    are guessed, never counted as none.

    Raises:
        PolicyRefusal: the answer is a refusal or was filtered.
        Truncated: the body is no JSON, or holds no choice, no text or no known end.
    """
    role = request.role
    try:
        body = json.loads(content)
    except ValueError:
        raise Truncated(f"The answer is no JSON ({len(content)} bytes).", role) from None
    choice = _first(body.get("choices")) if isinstance(body, dict) else None
    if choice is None:
        raise Truncated("The answer holds no choice.", role)
    message, ended = choice.get("message"), str(choice.get("finish_reason"))[:40]
    message = message if isinstance(message, dict) else {}
    if message.get("refusal") or any(word in ended.lower() for word in REFUSALS):
        raise PolicyRefusal("A content policy stopped the answer.", role)
    text = message.get("content")
    if not isinstance(text, str):
        hint = "; raise max_tokens" if FINISHES.get(ended) == "length" else ""
        raise Truncated(f"The answer holds no text (finish_reason={ended}{hint}).", role)
    if ended not in FINISHES:
        raise Truncated(f"The answer ended with the unknown finish_reason={ended}.", role)
    answered_by, visible = body.get("model"), cut(text, request.parameters.stop)
    return Reply(
        visible,
        _usage(body.get("usage"), request, text),
        FINISHES[ended] if visible == text else "stop",
        answered_by if isinstance(answered_by, str) else model,
    )


def cut(text: str, stops: Sequence[str]) -> str:
    """Return what comes before the first of `stops`, or all of the text where none is in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def failure(error: APIStatusError, request: Request, key: str | None) -> LMError:
    """Return what a 3xx, 4xx or 5xx answer means, in words without the key or the request's."""
    role, code = request.role, error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("innererror")
    codes = {str(body.get("code")), str(body.get("type"))}
    codes |= {str(inner.get("code"))} if isinstance(inner, dict) else set()
    if codes & POLICIES:
        return PolicyRefusal("A content policy stopped the request.", role)
    words = f"HTTP {code}{_words(error, request, key)}"
    if (code in (408, 429) or code >= 500) and "insufficient_quota" not in codes:
        return Transient(words, role, after=retry_after(error.response.headers))
    return Rejected(words, role)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, from Retry-After in seconds or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        day = parsedate_tz(value)
        seconds = mktime_tz(day) - time.time() if day else math.nan
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _words(error: APIStatusError, request: Request, key: str | None) -> str:
    body = error.body
    words = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    words = " ".join(str(words or "").split())
    if key:
        words = words.replace(key, "[key]")
    for message in request.messages:
        text = " ".join(message["content"].split())
        starts = range(max(len(text) - QUOTED, 0) + 1)
        if text and any(text[i : i + QUOTED] in words for i in starts):
            return " (the server's words quote the request and are left out)"
    return f": {words[:300]}" if words else ""


def _first(choices: Any) -> dict[str, Any] | None:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _usage(usage: Any, request: Request, text: str) -> Usage:
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if not isinstance(prompt, int) or prompt < 0:
        prompt = estimate(request).prompt
    if not isinstance(completion, int) or completion < 0:
        completion = len(text) // 3 + 1
    return Usage(prompt, completion)
