"""Choices are answered by one forward pass: the softmax of the logits, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from metaopt.llm import Client, Parameters, Rejected, Reply, Request, Usage, user
from metaopt.llm import likelihood as module
from metaopt.llm.decoding import Decoder

TEXTS = ["Hi", "What is the capital of France?", "1 + 1 = "]
CHOICES = ("Y", "No", "Nt", "a longer one")
Expected = Callable[[str, str], float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), context=128)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder(str(folder), "cpu", "float32", 0)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Expected:
    """log p of a text after a prompt: one token after the other, each from a pass of its own."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).double()

    def log_p(prompt: str, text: str) -> float:
        total, before = 0.0, tokenizer(prompt)["input_ids"]
        for token in tokenizer(text)["input_ids"]:
            with torch.no_grad():
                logits = model(torch.tensor([before])).logits[0, -1]
            total += float(logits[token] - logits.exp().sum().log())
            before = [*before, token]
        return total

    return log_p


def asked(text: str, **parameters: Any) -> Request:
    return Request("judge", user(text), Parameters(**parameters))


def answered(decoder: Decoder, *requests: Request) -> list[Reply]:
    replies = decoder.answers(requests)
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply for reply in replies if isinstance(reply, Reply)]


@pytest.mark.parametrize("most", [2**26, 1])
def test_likelihoods_are_those_of_separate_passes(
    decoder: Decoder, expected: Expected, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """In one batch of different lengths, and in batches of one row."""
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    replies = answered(decoder, *(asked(text, choices=CHOICES) for text in TEXTS))
    for text, reply in zip(TEXTS, replies, strict=True):
        prompt = f"user> {text}<end>assistant> "
        values = [expected(prompt, choice) for choice in CHOICES]
        assert [x.log_probability for x in reply.likelihoods] == pytest.approx(values, abs=1e-4)
        assert [x.tokens for x in reply.likelihoods] == [1, 2, 2, 12]
        assert reply.probabilities == pytest.approx([math.exp(v) for v in values], rel=1e-4)
        assert reply.text == CHOICES[values.index(max(values))]
        length = len(f"user> {text}") + len("<assistant> ")  # the end is one token
        assert reply.usage == Usage(length + 1 + 2 + 2 + 12, 0)


def test_single_tokens_share_one_row_and_add_up_to_1(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    logits = module._logits

    def counted(model: Any, batch: Any, pad: int, last: int) -> Any:
        rows.append(len(batch))
        return logits(model, batch, pad, last)

    monkeypatch.setattr(module, "_logits", counted)
    letters = tuple(chr(code) for code in range(32, 127))
    first, second = answered(decoder, asked("Hi", choices=letters), asked("Ho", choices=letters))
    assert rows == [2]
    assert 0.5 < sum(first.probabilities) < 1  # the rest is that of the special tokens
    assert first.probabilities != second.probabilities


def test_written_and_chosen_answers_share_a_batch(decoder: Decoder) -> None:
    written, chosen = asked("Hi", max_tokens=4), asked("Hi", choices=("a", "b"))
    together = decoder.answers([chosen, written, chosen])
    assert together == [decoder.answers([r])[0] for r in (chosen, written, chosen)]


def test_a_prefill_is_the_beginning_of_the_answer(decoder: Decoder, expected: Expected) -> None:
    begun = (*user("Hi"), {"role": "assistant", "content": "So: "})
    replies = answered(
        decoder,
        asked("Hi", choices=("a", "b"), prefill="So: "),
        Request("judge", begun, Parameters(choices=("a", "b"))),
        Request("judge", (*begun[:1], {**begun[1], "content": "So"}),
                Parameters(choices=("a", "b"), prefill=": ")),
    )  # fmt: skip
    assert replies[0] == replies[1] == replies[2]
    value = expected("user> Hi<end>assistant> So: ", "a")
    assert replies[0].likelihoods[0].log_probability == pytest.approx(value, abs=1e-4)
    plain, prefilled = answered(
        decoder, asked("Hi", max_tokens=6), asked("Hi", max_tokens=6, prefill="So: ")
    )
    assert plain.text != prefilled.text
    assert prefilled.usage.prompt == plain.usage.prompt + 4


def test_a_choice_that_shares_a_token_with_the_prompt_is_refused(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tokenizer that reads two characters as one token."""

    def pairs(text: str) -> list[int]:
        return [3 + sum(text[i : i + 2].encode()) % 90 for i in range(0, len(text), 2)]

    monkeypatch.setattr(decoder, "_ids", lambda texts: [pairs(text) for text in texts])
    (refused,) = decoder.answers([asked("Hi", choices=("Yes", "No"), prefill=".")])
    assert type(refused) is Rejected
    assert "The choice 'Yes' shares a token with the end of the prompt" in str(refused)


def test_a_conversation_is_tokenized_once_and_its_end_with_each_choice(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the tokens of a choice are those that the whole text has."""
    ids, read = decoder._ids, list[str]()

    def noted(texts: Sequence[str]) -> list[list[int]]:
        read.extend(texts)
        return ids(texts)

    monkeypatch.setattr(decoder, "_ids", noted)
    request = asked("A question. " * 5, choices=CHOICES, prefill="So:")
    encoded: Any = decoder._encode(request)
    prompt = f"user> {'A question. ' * 5}<end>assistant> So:"
    assert encoded.prompt == prompt
    tails = decoder._tails(encoded)
    end = "<end>assistant> So:"
    assert read == [prompt, end, *(end + choice for choice in CHOICES)]
    assert tails == [row[len(encoded.ids) :] for row in ids([prompt + c for c in CHOICES])]


def test_choices_that_do_not_fit_the_model_are_refused(decoder: Decoder) -> None:
    fits, refused = decoder.answers(
        [asked("Hi", choices=("a",), max_tokens=500), asked("Hi", choices=("x" * 120,))]
    )
    assert isinstance(fits, Reply)
    assert type(refused) is Rejected
    assert "120 of a choice exceed the model's 128" in str(refused)


def test_logits_that_are_not_numbers_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(str(folder), "cpu", "float32", 0)
    next(decoder._model.parameters()).data.fill_(float("nan"))
    (refused,) = decoder.answers([asked("Hi", choices=("a",))])
    assert type(refused) is Rejected
    assert "not numbers" in str(refused)


def test_answers_are_charged_recorded_and_replayed(folder: Path, tmp_path: Path) -> None:
    from metaopt.llm.transformers_lm import TransformersLM

    requests = [asked(t, choices=("a", "b")) for t in TEXTS]
    cassette = tmp_path / "answers.cassette"
    clients = [
        Client({"judge": TransformersLM(str(folder))}, mode=mode, cassette=cassette)
        for mode in ("record", "replay")
    ]
    answers = [client.ask(requests) for client in clients]
    assert answers[0] == answers[1]
    (spent, again), tokens = (c.spent() for c in clients), 0
    for answer in answers[0]:
        assert isinstance(answer, Reply)
        tokens += sum(answer.usage)
    assert spent == again == {"lm_calls": 3, "lm_requests": 3, "tokens": tokens}
    assert [client.sent["judge"] for client in clients] == [3, 0]
    for client in clients:
        client.close()
