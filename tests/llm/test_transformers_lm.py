"""Answers of a tiny random model: alone and in batches, greedy and sampled, cut and complete."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from servers import ALPHABET, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from metaopt.llm import LM, Client, LMError, Parameters, Rejected, Reply, Request, Usage, user
from metaopt.llm.decoding import Decoder, draw, uniforms
from metaopt.llm.transformers_lm import TransformersLM

CONTEXT = 128
TEXTS = ["Hi", "What is the capital of France?", "1 + 1 = ", "A somewhat longer question " * 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), context=CONTEXT)


async def _ask(lm: TransformersLM, requests: Sequence[Request], together: bool) -> list[Any]:
    calls = [lm.chat(r.role, r.messages, r.parameters, r.rollout) for r in requests]
    try:
        if together:
            return await asyncio.gather(*calls, return_exceptions=True)
        return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
    finally:
        await lm.close()


def ask(lm: TransformersLM, *requests: Request, together: bool = True) -> list[Any]:
    return asyncio.run(_ask(lm, requests, together))


def questions(rollout: int = 0, **parameters: Any) -> list[Request]:
    return [Request("judge", user(t), Parameters(**parameters), rollout) for t in TEXTS]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are decoded."""
    sizes: list[int] = []
    answers = Decoder.answers

    def counted(self: Decoder, requests: Sequence[Request]) -> list[Reply | LMError]:
        sizes.append(len(requests))
        return answers(self, requests)

    monkeypatch.setattr(Decoder, "answers", counted)
    return sizes


def test_transformers_lm_satisfies_the_protocol_of_language_models() -> None:
    assert isinstance(TransformersLM("nowhere"), LM)


def test_greedy_answers_are_those_of_generate_alone_and_in_a_batch(
    folder: Path, batches: list[int]
) -> None:
    requests = questions(max_tokens=24)
    together = ask(TransformersLM(str(folder), batch_size=4, wait=60.0), *requests)
    alone = ask(TransformersLM(str(folder), batch_size=1), *requests, together=False)
    assert batches == [4, 1, 1, 1, 1]
    assert together == alone

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for text, reply in zip(TEXTS, together, strict=True):
        prompt = tokenizer(f"user> {text}<end>assistant> ", return_tensors="pt")
        out = model.generate(**prompt, do_sample=False, max_new_tokens=24)[0]
        written = out[prompt["input_ids"].shape[1] :]
        assert reply.text == tokenizer.decode(written, skip_special_tokens=True)
        assert reply.usage == Usage(prompt["input_ids"].shape[1], len(written))
        assert reply.finish == ("stop" if written[-1] == tokenizer.eos_token_id else "length")


@pytest.mark.slow
def test_a_sample_is_a_function_of_the_request_whatever_the_batch(
    folder: Path, batches: list[int]
) -> None:
    sampled = [r for n in range(3) for r in questions(n, temperature=1.0, top_p=0.9, max_tokens=20)]
    mixed = [*questions(max_tokens=20), *sampled, *questions(temperature=0.3, max_tokens=20)]
    together = ask(TransformersLM(str(folder), batch_size=len(mixed), wait=60.0), *mixed)
    backwards = ask(TransformersLM(str(folder), batch_size=3), *mixed[::-1])[::-1]
    alone = ask(TransformersLM(str(folder), batch_size=1), *mixed, together=False)
    assert batches[0] == len(mixed)
    assert max(batches[1:]) == 3
    assert together == backwards == alone
    assert len({reply.text for reply in together}) == len(mixed)
    other = ask(TransformersLM(str(folder), seed=1), *sampled)
    assert not {reply.text for reply in other} & {reply.text for reply in together}


def test_roles_share_an_answer(folder: Path) -> None:
    requests = [Request(role, user("Hi"), Parameters(1.0, 20)) for role in ("judge", "checker")]
    first, second = ask(TransformersLM(str(folder)), *requests)
    assert first == second


def test_torchs_own_random_state_is_left_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    ask(TransformersLM(str(folder)), *questions(temperature=1.0, max_tokens=4))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6), (1.0, 0.01)]
)
def test_draws_have_the_probabilities_of_the_librarys_warpers(
    temperature: float, top_p: float
) -> None:
    """At n evenly spread uniforms a token of probability p is drawn n p times, within 1."""
    n, size = 2000, 40
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    empty = torch.zeros(1, 0, dtype=torch.long)
    expected = warpers(empty, logits[None].double()).softmax(-1)[0]  # type: ignore[arg-type]
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    temperatures, top_ps = (torch.full((n,), x, dtype=torch.float64) for x in (temperature, top_p))
    drawn = draw(logits.expand(n, size), temperatures, top_ps, uniform)
    counts = torch.bincount(drawn, minlength=size)
    assert (counts - n * expected).abs().max() <= 1.0
    assert not counts[expected == 0].any()


def test_draws_of_rows_with_different_parameters() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]]).expand(4, 3)
    temperature = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    top_p = torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.0, 1 - 2**-53, 0.0], dtype=torch.float64)
    assert draw(logits, temperature, top_p, uniform).tolist() == [1, 0, 1, 1]


def test_each_token_is_drawn_by_a_number_of_its_own(folder: Path) -> None:
    """At a huge temperature all tokens are equally likely, so the numbers themselves are read."""
    request = Request("judge", user("Hi"), Parameters(1e9, 40))
    lm, size = TransformersLM(str(folder), dtype="float64", seed=5), 3 + len(ALPHABET)
    (reply,) = ask(lm, request)
    ids = (uniforms(request, 5) * size).long().tolist()
    end = ids.index(2) + 1 if 2 in ids else len(ids)
    assert reply.text == "".join(ALPHABET[i - 3] for i in ids[:end] if i > 2)
    assert reply.usage.completion == end > 20


@pytest.mark.slow
def test_max_tokens_cuts_and_batches_hold_one_length(folder: Path, batches: list[int]) -> None:
    lengths = [5, 5, 9, 9, 9]
    requests = [
        Request("judge", user(f"question {i}"), Parameters(max_tokens=n))
        for i, n in enumerate(lengths)
    ]
    replies = ask(TransformersLM(str(folder), batch_size=5, wait=1.0), *requests)
    assert batches == [2, 3]
    assert [reply.usage.completion for reply in replies] == lengths
    assert {reply.finish for reply in replies} == {"length"}


def test_an_answer_that_ends_by_itself(folder: Path) -> None:
    requests = [r for n in range(30) for r in questions(n, temperature=1.5, max_tokens=40)]
    replies = ask(TransformersLM(str(folder), batch_size=64), *requests)
    ended = [reply for reply in replies if reply.finish == "stop"]
    assert ended
    for reply in replies:
        shown = len(reply.text) + (reply.finish == "stop")  # one character per token, and the end
        assert reply.usage.completion >= shown
        assert reply.usage.completion == 40 or reply.finish == "stop"


def test_a_stop_ends_its_own_row_only(folder: Path) -> None:
    (whole,) = ask(TransformersLM(str(folder)), questions(max_tokens=24)[1])
    stop = whole.text[10:12]
    at = whole.text.index(stop)
    stopped = [questions(max_tokens=24, stop=("never said", stop))[1], questions(max_tokens=24)[1]]
    cut, other = ask(TransformersLM(str(folder)), *stopped)
    assert cut == Reply(whole.text[:at], Usage(whole.usage.prompt, at + 2), "stop", str(folder))
    assert other == whole


def test_a_model_without_a_template_reads_the_contents(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, chat=False)
    messages = ({"role": "system", "content": "abc"}, {"role": "user", "content": "defg"})
    plain, begun = Parameters(0.0, 3), Parameters(0.0, 3, prefill="hi")
    requests = [Request("judge", messages, parameters) for parameters in (plain, begun)]
    replies = ask(TransformersLM(str(folder)), *requests)
    read = [len("abc\n\ndefg\n\n"), len("abc\n\ndefg\n\nhi")]
    assert [reply.usage for reply in replies] == [Usage(n, 3) for n in read]


def edited(folder: Path, target: Path, name: str, edit: Callable[[Any], Any]) -> Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    path = target / name
    if name.endswith("json"):
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    else:
        save_file(edit(load_file(path)), path, {"format": "pt"})
    return target


def test_a_checkpoints_own_settings_do_not_decide(folder: Path, tmp_path: Path) -> None:
    settings = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 5.0, "max_length": 3}
    other = edited(folder, tmp_path, "generation_config.json", lambda own: {**own, **settings})
    requests = [*questions(max_tokens=20), *questions(temperature=1.0, max_tokens=20)]
    texts = [[r.text for r in ask(TransformersLM(str(f)), *requests)] for f in (folder, other)]
    assert texts[0] == texts[1]


def test_a_request_that_does_not_fit_is_refused_and_the_others_answered(folder: Path) -> None:
    too_long = Request("judge", user("x" * CONTEXT), Parameters(max_tokens=8))
    fits = questions(max_tokens=8)
    first, refused, last = ask(TransformersLM(str(folder)), fits[0], too_long, fits[1])
    assert isinstance(first, Reply)
    assert isinstance(last, Reply)
    assert isinstance(refused, Rejected)
    assert f"exceed the model's {CONTEXT}" in str(refused)
    assert refused.role == "judge"


def test_a_last_message_of_the_assistant_is_continued(folder: Path, tmp_path: Path) -> None:
    decoder = Decoder(str(folder), "cpu", "float32", 0)
    turn = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    decoder._tokenizer.chat_template = template + "{% if add_generation_prompt %}<reply>{% endif %}"
    asked: Any = decoder._encode(Request("judge", turn, Parameters(max_tokens=8)))
    assert decoder._tokenizer.decode(asked.ids) == asked.prompt == "<user>q<reply>a"


def test_a_template_that_refuses(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    target = edited(folder, tmp_path / "a", "config.json", lambda own: own)
    (target / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    (failure,) = ask(TransformersLM(str(target)), questions()[0])
    assert isinstance(failure, Rejected)
    assert "no system role" in str(failure)


def test_a_model_that_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    head = "lm_head.weight"
    lacking = edited(
        folder, tmp_path, "model.safetensors", lambda w: {k: v for k, v in w.items() if k != head}
    )
    nothing = tmp_path / "nothing"
    for path, words in (
        (lacking, f"Cannot load the model '{lacking}' on cpu: the checkpoint lacks the weights "
         f"['{head}']. Give a folder"),
        (nothing, f"There is no folder {nothing}. Give one with a model in safetensors"),
    ):  # fmt: skip
        failures = ask(TransformersLM(str(path)), *questions()[:2])
        assert all(type(failure) is Rejected and not failure.remote for failure in failures)
        assert all(str(failure).startswith(words) for failure in failures)


def test_a_client_loads_the_model_when_it_is_made_and_not_for_a_replay(
    folder: Path, tmp_path: Path
) -> None:
    cassette, request = tmp_path / "answers.cassette", questions(max_tokens=4)[0]
    recording = Client({"judge": TransformersLM(str(folder))}, "record", cassette)
    answers = recording.ask([request])
    recording.close()
    moved = tmp_path / "moved"
    for mode in ("live", "record"):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            Client(
                {"judge": TransformersLM(str(moved))}, mode, cassette if mode != "live" else None
            )
    gone = TransformersLM(str(moved))
    gone.model = TransformersLM(str(folder)).model  # answers are recorded by the model's name
    replay = Client({"judge": gone}, "replay", cassette)
    assert replay.ask([request]) == answers
    replay.close()


def test_logits_that_are_not_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = edited(
        folder, tmp_path, "model.safetensors",
        lambda weights: {k: v * float("nan") for k, v in weights.items()},
    )  # fmt: skip
    (failure,) = ask(TransformersLM(str(broken)), questions(max_tokens=4)[0])
    assert isinstance(failure, Rejected)
    assert "not numbers" in str(failure)


def test_a_batch_that_does_not_fit_the_memory_is_halved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, sizes = Decoder._generate, []

    def small(self: Decoder, asked: Sequence[Any]) -> Any:
        sizes.append(len(asked))
        if len(asked) > limit:
            raise torch.OutOfMemoryError("no memory")
        return generate(self, asked)

    expected = ask(TransformersLM(str(folder)), *questions(max_tokens=6))
    monkeypatch.setattr(Decoder, "_generate", small)
    limit = 1
    lm = TransformersLM(str(folder), batch_size=4, wait=60.0)
    assert ask(lm, *questions(max_tokens=6)) == expected
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    limit = 0
    failures = ask(lm, *questions(max_tokens=6))
    assert all(isinstance(failure, Rejected) for failure in failures)


def test_a_request_that_is_given_up_is_not_decoded(folder: Path, batches: list[int]) -> None:
    async def run() -> list[Reply]:
        lm = TransformersLM(str(folder), batch_size=3, wait=60.0)
        calls = [lm.chat(r.role, r.messages, r.parameters, 0) for r in questions(max_tokens=4)[:3]]
        given_up, second = (asyncio.create_task(call) for call in calls[:2])
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        try:
            return await asyncio.gather(second, calls[2])
        finally:
            await lm.close()

    assert [reply.usage.completion for reply in asyncio.run(run())] == [4, 4]
    assert batches == [2]


def test_through_the_client(folder: Path, batches: list[int]) -> None:
    client = Client({"judge": TransformersLM(str(folder), batch_size=4, wait=60.0)}, concurrency=4)
    requests = questions(temperature=1.0, max_tokens=10)
    answers = client.ask([*requests, requests[0]])
    spent = client.spent()
    client.close()
    assert batches == [4]
    assert answers[0] == answers[4]
    usages = [answer.usage for answer in answers[:4] if isinstance(answer, Reply)]
    assert spent == {"lm_calls": 4, "lm_requests": 4, "tokens": sum(map(sum, usages))}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float64"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"wait": -1.0}, "wait=-1.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransformersLM("nowhere", **arguments)
