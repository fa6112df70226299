"""Bodies of replies that are not what they should be: counts, echoes, costs, and no end."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from servers import Asked, Scripted, Served, completion, error
from test_openai_compatible import FAULTS, FINE, KEY, ask, lm_of, question

from metaopt.llm import Client, PolicyRefusal, Rejected, Reply, Truncated, Usage
from metaopt.llm.replies import UNSEEN, retry_after
from metaopt.llm.transport import MOST_BYTES

BOMB = gzip.compress(b" " * 10**7)
PACKED = {"Content-Encoding": "gzip"}


def with_error(**fields: Any) -> Served:
    """Return an answer beside an error."""
    return Served(200, json.dumps(json.loads(FINE.body) | {"error": fields}).encode())


DAMAGED = {
    "no content": (Served(204, b""), "not JSON"),
    "a login page": (Served(200, b"<html>", {"Content-Type": "text/html"}), "not JSON"),
    "invalid UTF-8": (Served(200, FINE.body.replace(b"Fine", b"\xff\xfe")), "not JSON"),
    "a stream": (Served(200, b"data: " + FINE.body), "not JSON"),
    "nested": (Served(200, b'{"choices": ' + b"[" * 100_000), "not JSON"),
    "a list of it": (Served(200, b"[" + FINE.body + b"]"), "no choice"),
    "a bomb": (Served(200, BOMB, PACKED), "compressed"),
    "an error with a bomb": (Served(500, BOMB, PACKED), "compressed"),
    "no end": (Served(200, b" " * (MOST_BYTES + 1)), "longer than 16,777,216 bytes"),
    "an answer and an error": (with_error(message="overloaded"), "an error: overloaded"),
    "only an error": (Served(200, b'{"error": {"message": "no"}}'), "an error: no"),
    "half a character": (Served(200, FINE.body.replace(b"Fine", b"\\ud83d")), "surrogate pair"),
    "an error without end": (Served(500, b" " * (MOST_BYTES + 1)), "longer than 16,777,216"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_body_is_tried_again_and_may_be_billed(fault: str) -> None:
    served, words = DAMAGED[fault]
    with Scripted(lambda asked: served) as server:
        (failure,) = ask(lm_of(server), question())
    assert type(failure) is Truncated
    assert words in str(failure)
    assert (failure.role, failure.retry, failure.billed) == ("judge", True, True)
    assert len(server.log) == 1


def test_what_would_be_cut_again_is_not_tried_again() -> None:
    with Scripted(lambda asked: completion(None, "length")) as server:
        (failure,) = ask(lm_of(server), question())
    assert isinstance(failure, Truncated)
    assert (failure.retry, failure.billed) == (False, True)


def test_half_a_character_in_an_answer_loses_no_other_answer() -> None:
    """Of an emoji, JSON may hold one half: as a text, as a name, or in the words of an error."""
    faults = {
        "text": Served(200, FINE.body.replace(b"Fine", b"\\ud83d")),
        "model": Served(200, FINE.body.replace(b"m-1", b"\\ud83d")),
        "error": error(400, "no \ud83d"),
    }

    def script(asked: Asked) -> Served:
        mended = asked.text == "text" and asked.before
        return FINE if mended else faults.get(asked.text, FINE)

    with Scripted(script) as server:
        client = Client({"judge": lm_of(server)}, attempts=2)
        *answers, refused = client.ask([question(text) for text in ("fine", *faults)])
        client.close()
    assert [answer.text for answer in answers if isinstance(answer, Reply)] == ["Fine."] * 3
    assert isinstance(refused, Rejected)
    str(refused).encode()
    assert server.counts == {"fine": 1, "text": 2, "model": 1, "error": 1}


def test_an_error_of_a_policy_beside_an_answer_is_a_refusal() -> None:
    with Scripted(lambda asked: with_error(code="content_filter")) as server:
        (failure,) = ask(lm_of(server), question())
    assert type(failure) is PolicyRefusal


@pytest.mark.parametrize(
    ("usage", "charged"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 5000}, Usage(7, 4993)),
        ({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 3}, Usage(7, 5)),
        ({"total_tokens": 5000}, Usage(108, 4892)),
        ({"prompt_tokens": 7, "total_tokens": 10**18}, Usage(7, 512 + UNSEEN)),
    ],
)
def test_what_only_the_total_counts_is_charged(usage: dict[str, int], charged: Usage) -> None:
    body = json.loads(completion("x" * 300).body) | {"usage": usage}
    with Scripted(lambda asked: Served(200, json.dumps(body).encode())) as server:
        (reply,) = ask(lm_of(server), question("y" * 300))
    assert reply.usage == charged


@pytest.mark.parametrize(
    "usage",
    [
        None, [], "12", {"prompt_tokens": "9", "completion_tokens": "9"},
        {"prompt_tokens": -1, "completion_tokens": -1},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": True, "completion_tokens": 9.0},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"total_tokens": 5},
    ],
)  # fmt: skip
def test_tokens_are_guessed_where_the_count_cannot_be_right(usage: Any) -> None:
    choice = {"message": {"content": "x" * 300}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    with Scripted(lambda asked: Served(200, body)) as server:
        (reply,) = ask(lm_of(server), question("y" * 300))
    assert reply.usage == Usage(108, 101)


def test_a_count_beyond_any_answer_is_charged_as_the_longest_one() -> None:
    choice = {"message": {"content": "x" * 300}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10**12, "completion_tokens": 10**12}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    with Scripted(lambda asked: Served(200, body)) as server:
        (reply,) = ask(lm_of(server), question("y" * 300))
    longest = max(question("").parameters.max_tokens, 300)
    assert reply.usage == Usage(300 + UNSEEN, longest + UNSEEN)


def test_a_guess_counts_the_bytes_of_a_text() -> None:
    body = {"choices": [{"message": {"content": "\u4e2d" * 30}, "finish_reason": "stop"}]}
    with Scripted(lambda asked: Served(200, json.dumps(body).encode())) as server:
        (reply,) = ask(lm_of(server), question("y"))
    assert reply.usage.completion == 31


def test_a_count_may_hold_what_is_not_seen() -> None:
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 900, "completion_tokens": 700}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    with Scripted(lambda asked: Served(200, body)) as server:
        (reply,) = ask(lm_of(server), question("y"))
    assert reply.usage == Usage(900, 700)


@pytest.mark.parametrize(
    ("served", "kind", "billed"),
    [
        (FAULTS["429"][0], "HTTP 429", False),
        (FAULTS["500"][0], "HTTP 500", False),
        (error(504, "the model took too long"), "HTTP 504", True),
        (FAULTS["hang"][0], "timeout", True),
        (FAULTS["lost connection"][0], "lost connection", True),
        (FAULTS["null content"][0], "damaged answer", True),
        (FAULTS["401"][0], "HTTP 401", False),
    ],
)
def test_what_a_vendor_may_bill(served: Served, kind: str, billed: bool) -> None:
    with Scripted(lambda asked: served) as server:
        (failure,) = ask(lm_of(server, timeout=0.5), question())
    assert (failure.kind, failure.billed, failure.sent) == (kind, billed, True)


def test_a_year_that_no_calendar_has_is_no_time_to_wait() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 99999999999999 07:28:00 GMT"}) is None


def test_a_redirect_takes_neither_the_question_nor_the_key_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    with Scripted(lambda asked: FINE) as other:
        moved = Served(308, b"", {"Location": f"{other.url}/chat/completions"})
        with Scripted(lambda asked: moved) as server:
            (failure,) = ask(lm_of(server, key_variable="A_KEY"), question())
    assert isinstance(failure, Rejected)
    assert (len(server.log), len(other.log)) == (1, 0)


def test_a_key_that_an_answer_echoes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)

    def script(asked: Asked) -> Served:
        key = asked.headers["authorization"].removeprefix("Bearer ")
        if asked.text == "finish":
            return completion("Fine.", f"as {key}")
        body = json.loads(completion(f"You are {key}.").body) | {"model": key}
        return Served(200, json.dumps(body).encode())

    with Scripted(script) as server:
        lm = lm_of(server, key_variable="A_KEY")
        reply, failure = ask(lm, question("text"), question("finish"))
    assert (reply.text, reply.model) == ("You are [key].", "[key]")
    assert isinstance(failure, Truncated)
    assert KEY not in str(failure)
