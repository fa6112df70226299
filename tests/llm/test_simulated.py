from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence

import pytest
from paid import failures, requests

from metaopt.llm import (
    Client,
    LMError,
    Message,
    Parameters,
    Reply,
    Request,
    SimulatedLM,
    Transient,
    Usage,
    user,
)


def answer(role: str, messages: Sequence[Message], key: int) -> str:
    return f"{role}: {messages[-1]['content']}: {random.Random(key).random()}"


def ask(lm: SimulatedLM, request: Request) -> Reply:
    return asyncio.run(lm.chat(request.role, request.messages, request.parameters, request.rollout))


def test_the_key_depends_on_everything_that_is_asked() -> None:
    keys: list[int] = []
    lm = SimulatedLM(lambda role, messages, key: keys.append(key) or "")
    for request in (
        Request("target", user("a")),
        Request("judge", user("a")),
        Request("target", user("b")),
        Request("target", user("a"), Parameters(temperature=1.0)),
        Request("target", user("a"), rollout=1),
        Request("target", ({"role": "system", "content": "a"},)),
    ):
        ask(lm, request)
    assert len(set(keys)) == 6
    assert all(0 <= key < 2**63 for key in keys)
    ask(lm, Request("target", user("a")))
    assert keys[-1] == keys[0]


def test_the_seed_makes_another_world_of_another_name() -> None:
    one, other = SimulatedLM(answer), SimulatedLM(answer, seed=1)
    request = Request("target", user("a"))
    assert ask(one, request).text != ask(other, request).text
    assert one.model != other.model


def test_the_key_is_a_sha256_and_so_the_same_in_every_process() -> None:
    lm = SimulatedLM(lambda role, messages, key: str(key), seed=3)
    text = (
        '[3,"target",[["user","a"]],{"max_tokens":512,"stop":[],"temperature":0.0,"top_p":1.0},2]'
    )
    expected = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
    assert ask(lm, Request("target", user("a"), rollout=2)).text == str(expected)


def test_four_characters_are_a_token() -> None:
    lm = SimulatedLM(lambda role, messages, key: "x" * 40)
    assert ask(lm, Request("target", user("y" * 80))).usage == Usage(20, 10)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_first_attempts_fail_at_the_error_rate(rate: float) -> None:
    client = Client({"target": SimulatedLM(answer, error_rate=rate)}, attempts=1)
    failed = failures(client.ask(requests(2000))).count("Transient")
    assert failed / 2000 == pytest.approx(rate, abs=0.04)


def test_a_simulated_failure_may_be_tried_again_at_once() -> None:
    with pytest.raises(Transient) as failure:
        ask(SimulatedLM(answer, error_rate=1.0), Request("target", user("a")))
    assert failure.value.after == 0.0


def test_retries_get_the_answer_of_a_world_without_errors() -> None:
    batch = requests(300)
    calm, rough = (Client({"target": SimulatedLM(answer, error_rate=r)}) for r in (0.0, 0.9))
    assert calm.ask(batch) == rough.ask(batch)
    assert calm.spent() == rough.spent()
    assert calm.sent["target"] == 300
    assert rough.sent["target"] == pytest.approx(300 * (1 + 0.9 + 0.81 + 0.729), rel=0.05)


def test_without_retries_a_failure_is_typed_and_not_charged() -> None:
    client = Client({"target": SimulatedLM(answer, error_rate=1.0)}, attempts=1)
    answers = client.ask(requests(3))
    assert failures(answers) == ["Transient"] * 3
    assert all(isinstance(a, LMError) for a in answers)
    assert client.spent() == {"lm_calls": 0.0, "tokens": 0.0}


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_an_error_rate_is_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match="error_rate"):
        SimulatedLM(answer, error_rate=rate)


def test_a_function_has_probability_1_for_what_it_answers() -> None:
    lm = SimulatedLM(lambda role, messages, key: messages[-1]["content"])
    parameters = Parameters(choices=("yes", "no"))
    assert ask(lm, Request("judge", user("no"), parameters)).probabilities == (0.0, 1.0)
    assert ask(lm, Request("judge", user("why"), parameters)).probabilities == (0.0, 0.0)


def test_choices_by_a_function_of_them() -> None:
    def choose(role: str, messages: Sequence[Message], choices: Sequence[str], key: int) -> list:
        return [0.1 * len(choice) for choice in choices]

    lm = SimulatedLM(answer, choose=choose)
    reply = ask(lm, Request("judge", user("12345678"), Parameters(choices=("yes", "no"))))
    assert reply.probabilities == pytest.approx((0.3, 0.2))
    assert (reply.text, reply.usage) == ("yes", Usage(4, 0))
    with pytest.raises(ValueError, match="at most 1 together"):
        ask(lm, Request("judge", user("a"), Parameters(choices=("a" * 6, "b" * 6))))


def test_a_prefill_begins_the_answer() -> None:
    lm = SimulatedLM(lambda role, messages, key: str([*messages]))
    begun = (*user("a"), {"role": "assistant", "content": "So"})
    text = ask(lm, Request("judge", user("a"), Parameters(prefill="So"))).text
    assert text == ask(lm, Request("judge", begun)).text == str([*begun])
