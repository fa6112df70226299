"""Choices by a server: what is sent, what is read, and a server that lists no log probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from servers import Asked, Scripted, Served, completion, error

from metaopt.llm import Client, LMError, Parameters, Rejected, Reply, Request, user
from metaopt.llm.errors import Truncated, Unsupported
from metaopt.llm.openai_compatible import OpenAICompatibleLM

YES_NO = Parameters(choices=("yes", "no"))


def listing(top: Mapping[str, float] | None, **choice: Any) -> Served:
    """Return an answer of one token whose alternatives have these probabilities."""
    entries = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (top or {}).items()]
    logprobs = {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": entries}]}
    served = completion("x", "length")
    body = json.loads(served.body)
    body["choices"][0] |= {"logprobs": None if top is None else logprobs, **choice}
    return Served(200, json.dumps(body).encode())


def asked(server: Scripted, *requests: Request, **arguments: Any) -> list[Reply | LMError]:
    lm = OpenAICompatibleLM("m", server.url, None, **arguments)
    client = Client({"judge": lm}, attempts=1)
    try:
        return client.ask(requests)
    finally:
        client.close()


def test_what_is_sent_and_read() -> None:
    parameters = Parameters(choices=(" yes", " no"), prefill="Answer:")
    with Scripted(lambda asked: listing({" no": 0.5, " yes": 0.25, "Yes": 0.125})) as server:
        (reply,) = asked(server, Request("judge", user("Is it?"), parameters))
    assert isinstance(reply, Reply)
    assert reply.probabilities == pytest.approx((0.25, 0.5))
    assert (reply.text, reply.finish, sum(reply.usage)) == (" no", "stop", 12)
    assert server.log[0].body == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Answer:"},
        ],
        "temperature": 0.0, "top_p": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20,
        "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "served", [listing(None), listing({}), completion("yes"), listing(None, logprobs={})]
)
def test_a_server_without_log_probabilities_is_asked_once(served: Served) -> None:
    requests = [Request("judge", user(f"question {i}"), YES_NO) for i in range(12)]
    with Scripted(lambda asked: served) as server:
        client = Client({"judge": OpenAICompatibleLM("m", server.url, None)})
        answers = client.ask(requests)
        spent = client.spent()
        client.close()
    assert len(server.log) == 1
    assert spent["lm_requests"] == 1
    assert spent["tokens"] > 0
    for answer in answers:
        assert isinstance(answer, Unsupported)
        for words in (server.url, "logprobs and top_logprobs", "vLLM", "llm=transformers"):
            assert words in str(answer)


def test_a_server_that_refuses_the_field_is_asked_once() -> None:
    requests = [Request("judge", user(f"question {i}"), YES_NO) for i in range(3)]
    with Scripted(lambda asked: error(400, "logprobs is not supported")) as server:
        answers = asked(server, *requests)
    assert len(server.log) == 1
    assert all(isinstance(answer, Unsupported) for answer in answers)
    assert "HTTP 400: logprobs is not supported" in str(answers[-1])


def test_a_server_that_does_not_continue_an_answer_is_named() -> None:
    fault = error(422, "Unexpected fields in the request: {'continue_final_message'}")
    request = Request("judge", user("Why?"), Parameters(choices=("a", "b"), prefill="So"))
    with Scripted(lambda asked: fault) as server:
        (answer,) = asked(server, request)
    assert isinstance(answer, Unsupported)
    assert "prefill takes a server that continues an answer" in str(answer)


def test_after_a_passing_failure_the_next_request_shows_it() -> None:
    def script(asked: Asked) -> Served:
        return error(500, "busy") if asked.text == "a" else listing({"yes": 0.5, "no": 0.25})

    with Scripted(script) as server:
        answers = asked(server, *(Request("judge", user(text), YES_NO) for text in "abc"))
    assert [type(a).__name__ for a in answers] == ["Transient", "Reply", "Reply"]


def test_requests_without_choices_do_not_wait() -> None:
    with Scripted(lambda asked: completion("Fine.")) as server:
        first, second = asked(
            server, Request("judge", user("a"), YES_NO), Request("judge", user("b"))
        )
    assert isinstance(first, Unsupported)
    assert isinstance(second, Reply)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"yes": 0.5, "no": 0.3, "well": 0.1}, (0.5, 0.3)),
        ({"no": 0.9, "well": 0.001}, (0.0, 0.9)),  # yes has at most 0.001
        ({"no": 0.9999, "well": 1e-9, "hm": 0.0001}, (0.0, 0.9999)),
        ({"no": 0.9, "well": 0.02}, "'yes' are not among them"),  # yes may have 0.02 of 0.92
        ({"no": 0.9, "ye": 0.05, "well": 1e-4}, "may have up to 0.05"),  # yes may begin with ye
        ({"well": 0.9, "hm": 0.05}, "'yes', 'no' are not among them"),
    ],
)
def test_a_choice_that_is_not_listed(top: dict[str, float], expected: Any) -> None:
    with Scripted(lambda asked: listing(top)) as server:
        (reply,) = asked(server, Request("judge", user("a"), YES_NO))
    if isinstance(expected, str):
        assert type(reply) is Rejected
        assert expected in str(reply)
    else:
        assert isinstance(reply, Reply)
        assert reply.probabilities == pytest.approx(expected)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"logprobs": {"content": []}}, "ended before its first token"),
        ({"logprobs": {"content": [{"top_logprobs": [{"token": "yes"}]}]}}, "no log probability"),
        (
            {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": 0.5}]}]}},
            "no log probability",
        ),
        (
            {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": False}]}]}},
            "no log probability",
        ),
        (
            {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": -10**400}]}]}},
            "no log probability",
        ),
        (
            {"logprobs": {"content": [{"top_logprobs": [{"token": t, "logprob": -0.1}
                                                        for t in ("yes", "no")]}]}},
            "more than 1",
        ),
    ],
)  # fmt: skip
def test_damaged_listings(choice: dict[str, Any], words: str) -> None:
    with Scripted(lambda asked: listing({"yes": 0.5}, **choice)) as server:
        (reply,) = asked(server, Request("judge", user("a"), YES_NO))
    assert isinstance(reply, Truncated)
    assert words in str(reply)


def test_a_text_of_several_words_is_refused_before_it_is_sent() -> None:
    with Scripted(lambda asked: completion("yes")) as server:
        (answer,) = asked(server, Request("judge", user("a"), Parameters(choices=("two words",))))
    assert not server.log
    assert isinstance(answer, Unsupported)
    assert "the choice 'two words' is of several" in str(answer)
    assert "llm=transformers" in str(answer)


def test_the_fields_are_set_here() -> None:
    with pytest.raises(ValueError, match="extra_body may not set logprobs"):
        OpenAICompatibleLM("m", "http://127.0.0.1:1/v1", None, extra_body={"logprobs": True})
