from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from paid import Paid

from metaopt.llm import (
    LM,
    Likelihood,
    Parameters,
    Reply,
    Request,
    SimulatedLM,
    Usage,
    estimate,
    user,
)

ASKED = Request("target", user("What is 2 + 2?"), Parameters(temperature=1.0), rollout=3)


def test_the_key_is_the_sha256_of_canonical_json() -> None:
    text = (
        '{"messages":[{"content":"What is 2 + 2?","role":"user"}],"model":"m","parameters":'
        '{"max_tokens":512,"stop":[],"temperature":1.0,"top_p":1.0},"rollout":3}'
    )
    assert ASKED.key("m") == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(text)["rollout"] == ASKED.rollout


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, rollout=4),
        replace(ASKED, messages=user("What is 2 + 3?")),
        replace(ASKED, messages=({"role": "system", "content": "What is 2 + 2?"},)),
        replace(ASKED, parameters=Parameters(temperature=0.5)),
        replace(ASKED, parameters=Parameters(temperature=1.0, max_tokens=511)),
        replace(ASKED, parameters=Parameters(temperature=1.0, top_p=0.9)),
        replace(ASKED, parameters=Parameters(temperature=1.0, stop=("\n",))),
        replace(ASKED, parameters=Parameters(temperature=1.0, prefill="So")),
    ],
)
def test_whatever_decides_the_answer_is_in_the_key(other: Request) -> None:
    assert other.key("m") != ASKED.key("m")


def test_the_model_is_in_the_key_and_the_role_is_not() -> None:
    assert ASKED.key("m") != ASKED.key("n")
    assert ASKED.key("m") == replace(ASKED, role="judge").key("m")


def test_messages_that_join_to_the_same_text_differ() -> None:
    one = replace(ASKED, messages=(*user("ab"), *user("c")))
    assert one.key("m") != replace(ASKED, messages=(*user("a"), *user("bc"))).key("m")


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"max_tokens": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)  # type: ignore[arg-type]


def test_the_estimate_is_above_four_characters_a_token_and_counts_the_cap() -> None:
    text = "word " * 100
    guess = estimate(Request("judge", user(text), Parameters(max_tokens=7)))
    assert len(text) / 4 < guess.prompt < len(text)
    assert guess.completion == 7


def test_models_satisfy_the_protocol() -> None:
    assert isinstance(SimulatedLM(lambda role, messages, key: ""), LM)
    assert isinstance(Paid(), LM)
    assert not isinstance("gpt", LM)


def test_a_reply_is_a_value() -> None:
    assert Reply("a", Usage(1, 2)) == Reply("a", Usage(prompt=1, completion=2), "stop", "")


def test_choices_and_prefill_are_in_the_key() -> None:
    different = [
        Parameters(),
        Parameters(choices=("yes", "no")),
        Parameters(choices=("no", "yes")),
        Parameters(choices=("yes", "no"), prefill="Answer: "),
        Parameters(prefill="Answer: "),
    ]
    assert len({Request("judge", user("a"), each).key("m") for each in different}) == 5


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"choices": ("1", "2", "10")}, "'1' begins '10'"),
        ({"choices": ("yes", "yes")}, "'yes' begins 'yes'"),
        ({"choices": ("yes", "")}, "not empty"),
        ({"choices": "yes"}, "must be texts"),
        ({"choices": (1, 2)}, "must be texts"),
        ({"choices": ("yes", "no"), "temperature": 1.0}, "got temperature=1.0"),
        ({"choices": ("yes", "no"), "stop": ("n",)}, "no stop"),
    ],
)
def test_choices_that_mean_nothing_are_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Parameters(**parameters)


def test_probabilities_and_means_of_likelihoods() -> None:
    reply = Reply("a", likelihoods=(Likelihood(math.log(0.25), 2), Likelihood(-math.inf)))
    assert reply.probabilities == pytest.approx((0.25, 0.0))
    assert reply.likelihoods[0].mean == pytest.approx(math.log(0.5))


def test_choices_are_read_and_at_most_one_token_is_written() -> None:
    asked = Request("judge", user("a" * 30), Parameters(choices=("b" * 30, "c")))
    assert estimate(asked) == Usage(61 // 3 + 8 + 2, 1)
