"""A server that misbehaves in every known way: which failure each is, and how often it is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import traceback
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from servers import Asked, Scripted, Served, completion, error

from metaopt.llm import (
    Client,
    LMError,
    Parameters,
    PolicyRefusal,
    Rejected,
    Reply,
    Request,
    Transient,
    Truncated,
    Usage,
    user,
)
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.llm.replies import retry_after

FINE = completion("Fine.")
CUT = Served(200, FINE.body[:40])
LOST = Served(200, FINE.body[:40], claim=100)
KEY = "sk-Zq81-never-shown-anywhere"

FAULTS = {
    "429": (error(429, "slow down", after="7"), Transient, "HTTP 429: slow down"),
    "500": (error(500, "out of order"), Transient, "HTTP 500: out of order"),
    "503 without JSON": (Served(503, b"<h1>busy</h1>"), Transient, "HTTP 503: <h1>busy</h1>"),
    "408": (error(408, "too slow"), Transient, "HTTP 408"),
    "hang": (FINE._replace(delay=30.0), Transient, "No answer within 0.5 s"),
    "trickle": (FINE._replace(drip=0.05), Transient, "No answer within 0.5 s"),
    "lost connection": (LOST, Transient, "No connection to"),
    "no quota": (error(429, "pay", code="insufficient_quota"), Rejected, "HTTP 429: pay"),
    "400": (error(400, "max_tokens is too large"), Rejected, "HTTP 400: max_tokens is too"),
    "401": (error(401, "wrong key"), Rejected, "HTTP 401"),
    "404": (error(404, "no such model", code="model_not_found"), Rejected, "no such model"),
    "422": (Served(422, b'{"detail": "no such field"}'), Rejected, "HTTP 422: no such field"),
    "redirect": (Served(307, b"", {"Location": "http://127.0.0.1:9/v1"}), Rejected, "HTTP 307"),
    "filtered request": (error(400, "no", code="content_filter"), PolicyRefusal, "policy"),
    "policy of Azure": (
        error(400, "no", code=None, innererror={"code": "ResponsibleAIPolicyViolation"}),
        PolicyRefusal,
        "policy",
    ),
    "filtered answer": (completion("Half of", "content_filter"), PolicyRefusal, "policy"),
    "refusal": (completion(None, refusal="I will not."), PolicyRefusal, "policy"),
    "cut JSON": (CUT, Truncated, "not JSON"),
    "no JSON": (Served(200, b"hello", {"Content-Type": "text/html"}), Truncated, "not JSON"),
    "empty": (Served(200, b""), Truncated, "not JSON"),
    "a list": (Served(200, b"[]"), Truncated, "no choice"),
    "no choices": (Served(200, b'{"choices": []}'), Truncated, "no choice"),
    "null choices": (Served(200, b'{"choices": null}'), Truncated, "no choice"),
    "no message": (Served(200, b'{"choices": [{"finish_reason": "stop"}]}'), Truncated, "no text"),
    "null content": (completion(None), Truncated, "no text"),
    "empty content": (completion(""), Truncated, "no text"),
    "blank content": (completion(" \n"), Truncated, "no text"),
    "blank in time": (completion("\n", "length"), Truncated, "raise max_tokens"),
    "nothing said in time": (completion(None, "length"), Truncated, "raise max_tokens"),
    "tool call": (completion(None, "tool_calls"), Truncated, "no text"),
    "aborted": (completion("Half of", "abort"), Truncated, "finish_reason=abort"),
    "no finish": (completion("Half of", None), Truncated, "finish_reason=None"),
}


def lm_of(server: Scripted, **arguments: Any) -> OpenAICompatibleLM:
    return OpenAICompatibleLM(
        **{"model": "m", "base_url": server.url, "key_variable": None, **arguments}
    )


async def _ask(lm: OpenAICompatibleLM, requests: Sequence[Request]) -> list[Any]:
    try:
        asked = (lm.chat(r.role, r.messages, r.parameters, r.rollout) for r in requests)
        return await asyncio.gather(*asked, return_exceptions=True)
    finally:
        await lm.close()


def ask(lm: OpenAICompatibleLM, *requests: Request) -> list[Any]:
    return asyncio.run(_ask(lm, requests))


def question(text: str = "How are you?", **parameters: Any) -> Request:
    return Request("judge", user(text), Parameters(**parameters))


def test_an_answer_and_what_was_sent() -> None:
    with Scripted(lambda asked: FINE) as server:
        lm = lm_of(server, extra_body={"top_k": 5})
        (reply,) = ask(lm, question(temperature=0.5, max_tokens=9, top_p=0.25, stop=("A", "B")))
    assert reply == Reply("Fine.", Usage(7, 5), "stop", "m-1")
    (asked,) = server.log
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "How are you?"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "top_p": 0.25,
        "stop": ["A", "B"],
        "top_k": 5,
    }


def test_a_cut_answer_says_so() -> None:
    with Scripted(lambda asked: completion("Half of", "length")) as server:
        (cut,) = ask(lm_of(server), question())
    assert (cut.text, cut.finish) == ("Half of", "length")


def test_a_stop_left_in_the_text_is_cut_off() -> None:
    with Scripted(lambda asked: completion("one, two; three.", "length")) as server:
        cut, whole = ask(lm_of(server), question("a", stop=(";", ", t", "?")), question("b"))
    assert (cut.text, cut.finish) == ("one", "stop")
    assert (whole.text, whole.finish) == ("one, two; three.", "length")


def test_tokens_are_guessed_where_the_server_does_not_count() -> None:
    body = {"choices": [{"message": {"content": "x" * 300}, "finish_reason": "stop"}]}
    with Scripted(lambda asked: Served(200, json.dumps(body).encode())) as server:
        (reply,) = ask(lm_of(server), question("y" * 30))
    assert reply.usage == Usage(18, 101)
    assert reply.model == "m"


def test_seeds_are_a_function_of_the_request_and_sent_where_it_is_sampled() -> None:
    requests = [Request("judge", user("a"), Parameters(1.0), rollout) for rollout in (0, 1, 0)]
    with Scripted(lambda asked: FINE) as server:
        ask(lm_of(server, seed=3), *requests, question("b"))
        ask(lm_of(server, limit_field="max_completion_tokens"), question("c", temperature=1.0))
    seeds = [asked.body.get("seed") for asked in server.log if asked.text == "a"]
    assert len(set(seeds)) == 2
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds)
    others = [asked.body for asked in server.log if asked.text != "a"]
    assert all("seed" not in body for body in others)
    assert others[1]["max_completion_tokens"] == 512
    assert "max_tokens" not in others[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_typed_failure_after_one_request(fault: str) -> None:
    served, kind, words = FAULTS[fault]
    with Scripted(lambda asked: served) as server:
        start = time.monotonic()
        timeout = 0.5 if "0.5 s" in words else 60.0
        (failure,) = ask(lm_of(server, timeout=timeout), question())
    assert type(failure) is kind
    assert words in str(failure)
    assert failure.role == "judge"
    assert getattr(failure, "after", None) == (7.0 if fault == "429" else None)
    assert len(server.log) == 1
    assert time.monotonic() - start < 20


def test_a_dead_server_is_a_transient_failure() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (failure,) = ask(OpenAICompatibleLM("m", url, None), question())
    assert type(failure) is Transient
    assert url in str(failure)
    assert (failure.billed, failure.sent) == (False, False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("1.5", 1.5), ("-3", 0), ("soon", None), ("nan", None), ("inf", None)],
)
def test_how_long_to_wait(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_how_long_to_wait_as_a_date() -> None:
    assert retry_after({}) is None
    day = formatdate(time.time() + 90, usegmt=True)
    assert retry_after({"retry-after": day}) == pytest.approx(90, abs=3)
    assert retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0


def test_an_lm_serves_one_event_loop_after_another() -> None:
    with Scripted(lambda asked: FINE) as server:
        lm = lm_of(server)
        assert [ask(lm, question(str(i)))[0].text for i in range(3)] == ["Fine."] * 3


@pytest.mark.slow
def test_the_client_asks_again_what_another_try_may_mend() -> None:
    faults = {
        "429": error(429, "slow down", after="0"),
        "500": error(500, "out of order", after="0"),
        "hang": FINE._replace(delay=30.0),
        "400": error(400, "no"),
        "401": error(401, "no"),
        "cut": CUT,
        "null": completion(None),
    }

    def script(asked: Asked) -> Served:
        transient = asked.text in ("429", "500", "hang")
        return FINE if transient and asked.before else faults.get(asked.text, FINE)

    with Scripted(script) as server:
        lms = {"judge": lm_of(server), "slow": lm_of(server, timeout=0.5, name="slow")}
        client = Client(lms, attempts=2)
        roles = ["slow" if text == "hang" else "judge" for text in faults]
        asked = [Request(role, user(text)) for role, text in zip(roles, faults, strict=True)]
        answers = dict(zip(faults, client.ask(asked), strict=True))
        client.close()
    kinds = dict.fromkeys(("429", "500", "hang"), Reply)
    kinds |= {"400": Rejected, "401": Rejected, "cut": Truncated, "null": Truncated}
    assert {text: type(answer) for text, answer in answers.items()} == kinds
    assert server.counts["hang"] >= 2
    counts = {"429": 2, "500": 2, "400": 1, "401": 1, "cut": 2, "null": 2}
    assert {text: server.counts[text] for text in counts} == counts


def test_a_fault_that_lasts_is_given_up(tmp_path: Path) -> None:
    with Scripted(lambda asked: error(503, "busy", after="0")) as server:
        client = Client({"judge": lm_of(server)}, attempts=4)
        (failure,) = client.ask([question()])
        client.close()
    assert isinstance(failure, Transient)
    assert server.counts == {"How are you?": 4}
    assert client.sent == {"judge": 4}


@pytest.mark.parametrize(
    "fault", ["400", "401", "cut JSON", "null content", "500", "lost connection"]
)
def test_one_failure_among_twenty_loses_no_paid_reply(fault: str, tmp_path: Path) -> None:
    def script(asked: Asked) -> Served:
        return FAULTS[fault][0] if asked.text == "7" else completion(f"to {asked.text}")

    requests = [question(str(i)) for i in range(20)]
    with Scripted(script) as server:
        client = Client({"judge": lm_of(server)}, concurrency=20, attempts=1)
        client.open(tmp_path / "run")
        answers = client.ask(requests)
        client.close()
        assert isinstance(answers.pop(7), FAULTS[fault][1])
        others = [str(i) for i in range(20) if i != 7]
        assert [a.text for a in answers if isinstance(a, Reply)] == [f"to {t}" for t in others]

        again = Client({"judge": lm_of(server)}, attempts=1)
        again.open(tmp_path / "run")
        again.ask(requests)
        again.close()
    assert all(server.counts[text] == 1 for text in others)


def test_a_policy_refusal_stops_the_client_and_is_asked_once() -> None:
    def script(asked: Asked) -> Served:
        return FAULTS["filtered request"][0] if asked.text == "no" else FINE

    with Scripted(script) as server:
        client = Client({"judge": lm_of(server)})
        first, refused = client.ask([question("yes"), question("no")])
        later = client.ask([question("yes"), question("more")])
        client.close()
    assert isinstance(first, Reply)
    assert isinstance(refused, PolicyRefusal)
    assert client.stopped
    assert later[0] == first
    assert isinstance(later[1], PolicyRefusal)
    assert server.counts == {"yes": 1, "no": 1}


def shown(failure: BaseException) -> str:
    """All that a crash report could print of an exception."""
    chain: list[str] = []
    link: BaseException | None = failure
    while link is not None:
        chain += [repr(link), *traceback.format_exception(link), repr(vars(link))]
        link = link.__cause__ or link.__context__
    return " ".join(chain)


def test_a_server_that_echoes_the_key_and_the_question_leaks_neither(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the canary sings at four in the morning"

    def script(asked: Asked) -> Served:
        echo = asked.headers["authorization"]
        if asked.text == "first":
            return error(401, f"not allowed: {echo}")._replace(headers={"Set-Cookie": echo})
        if asked.text == "second":
            return Served(500, f"<pre>{echo}</pre>".encode())
        return error(400, f"bad input: {asked.text[10:35]!r}") if asked.text == secret else FINE

    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    with Scripted(script) as server:
        lm = lm_of(server, key_variable="A_KEY")
        *failures, fine = ask(lm, *(question(t) for t in ("first", "second", secret, "fine")))
    assert fine.text == "Fine."
    assert {asked.headers["authorization"] for asked in server.log} == {f"Bearer {KEY}"}
    assert "HTTP 401: not allowed: Bearer [key]" in str(failures[0])
    assert "HTTP 400 (the server's words quote the request" in str(failures[2])
    logged = " ".join(record.getMessage() for record in caplog.records)
    everything = [*map(shown, failures), logged, repr(lm), repr(vars(lm)), lm.model, repr(fine)]
    for text in everything:
        assert KEY not in text
        assert "canary sings" not in text


def test_no_other_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    with Scripted(lambda asked: FINE) as server:
        ask(lm_of(server), question())
    assert KEY not in str(server.log)


@pytest.mark.parametrize(
    ("value", "words"), [(None, "it is not set"), ("", "not set"), ("a b", "it is damaged")]
)
def test_a_missing_key_is_a_rejection_that_sends_nothing(
    value: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with Scripted(lambda asked: FINE) as server:
        (failure,) = ask(lm_of(server, key_variable="A_KEY"), question())
    assert isinstance(failure, Rejected)
    assert words in str(failure)
    assert "key_variable=null" in str(failure)
    assert not server.log


def test_a_replay_needs_neither_a_key_nor_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    requests = [question(str(i)) for i in range(5)]
    answers = []
    with Scripted(lambda asked: completion(f"to {asked.text}")) as server:
        url = server.url
        for mode in ("record", "replay"):
            lm = OpenAICompatibleLM("m", url, "A_KEY")
            client = Client({"judge": lm}, mode=mode, cassette=tmp_path / "answers.cassette")
            if mode == "replay":
                server.__exit__()
                monkeypatch.delenv("A_KEY")
            answers.append(client.ask(requests))
            client.close()
    assert answers[0] == answers[1]
    assert [answer.text for answer in answers[1]] == [f"to {i}" for i in range(5)]
    assert len(server.log) == 5
    assert KEY.encode() not in (tmp_path / "answers.cassette").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": ""}, "model must be"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"limit_field": "max_words"}, "limit_field must be"),
        ({"extra_body": {"messages": [], "stream": True}}, "may not set messages, stream"),
        ({"base_url": "https://api.example.com/v1"}, "is not in hosts="),
        ({"base_url": "http://gpu:80/v1", "hosts": ["gpu"], "key_variable": "K"}, "unencrypted"),
        ({"authorisation": {"owner": "me"}}, "lacks system"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    given = {"model": "m", "base_url": "http://localhost/v1", "key_variable": None, **arguments}
    with pytest.raises(ValueError, match=words):
        OpenAICompatibleLM(**given)


def test_what_decides_an_answer_is_in_the_name_of_the_model() -> None:
    def name(**arguments: Any) -> str:
        return OpenAICompatibleLM("m", "http://localhost/v1/", None, **arguments).model

    assert name() == "m at http://localhost/v1"
    names = [name(), name(seed=0), name(seed=1), name(extra_body={"top_k": 5}), name(name="other")]
    assert len(set(names)) == len(names)
    assert name(timeout=1.0, authorisation=None) == name()
    assert isinstance(Rejected("x"), LMError)
