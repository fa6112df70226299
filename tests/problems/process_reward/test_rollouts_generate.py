"""Rollouts of a local transformers model: their law is the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.labelling.generate import GenerateCompletion
from metaopt.problems.process_reward.labelling.rollouts import label_steps

WORDS = ["<end>", "<unknown>", "0", "1", "2", "3", "4", "+", "=", "A:", "so"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("model")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=0, bos_token_id=None,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


def law(folder: str, text: str, temperature: float) -> np.ndarray:
    """Return the distribution of the next word, from a forward pass without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(tokens).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).numpy()


def test_the_first_word_has_the_models_distribution(folder: str) -> None:
    policy = GenerateCompletion(folder, temperature=0.7, max_tokens=100, batch_size=600)
    prompts = ["1 + 1 =", "0"] * 300
    prefixes: list[list[str]] = [["so 1", "+ 2 = 3"], []] * 300
    completions = policy.complete(prompts, prefixes, np.random.default_rng(0))
    assert len(completions) == 600
    for kind, text in enumerate(("1 + 1 = so 1 + 2 = 3", "0")):
        said = [x for x in completions[kind::2] if x is not None]
        assert len(said) > 290
        firsts = [next(i for i, w in enumerate(WORDS) if x.startswith(w)) if x else 0 for x in said]
        expected = len(said) * law(folder, text, 0.7)
        often = expected > 5
        counts = np.bincount(firsts, minlength=len(WORDS))
        rest = counts[~often].sum(), expected[~often].sum()
        observed, wanted = np.append(counts[often], rest[0]), np.append(expected[often], rest[1])
        assert often.sum() > 2
        assert chisquare(observed, wanted).pvalue > 1e-3


def test_draws_are_a_function_of_the_generator(folder: str) -> None:
    policy = GenerateCompletion(folder, max_tokens=20, batch_size=4)
    before = torch.get_rng_state()
    args: Any = (["1"] * 10, [["so"]] * 10)
    one, same, other = (policy.complete(*args, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) > 3
    assert torch.equal(before, torch.get_rng_state())


def test_a_completion_that_is_cut_off_is_none(folder: str) -> None:
    policy = GenerateCompletion(folder, temperature=1.0, max_tokens=1)
    completions = policy.complete(["1"] * 200, [[]] * 200, np.random.default_rng(0))
    ended = law(folder, "1", 1.0)[0]
    assert set(completions) <= {None, ""}
    share = np.mean([x == "" for x in completions])
    assert share == pytest.approx(ended, abs=4 * np.sqrt(ended * (1 - ended) / 200) + 1e-9)


def test_a_chat_template_puts_the_steps_into_the_answers_turn(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = GenerateCompletion(folder)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    policy._tokenizer.chat_template = (
        template + "{% if add_generation_prompt %} [assistant] {% endif %}"
    )
    assert policy._text("q", ["a", "b"]) == "[user] q [assistant] a\n\nb\n\n"


def test_labels_from_a_local_model(folder: str, tmp_path: Path) -> None:
    policy = GenerateCompletion(folder, temperature=1.0, max_tokens=30)
    chains = [Chain("1 + 1 =", ("so 1", "+ 1"), qid=str(i)) for i in range(4)]
    labelled = label_steps(chains, ["2"] * 4, policy, tmp_path, batch=3)
    assert {r in range(9) for c in labelled for r in c.rollouts} == {True}
    assert sum(r or 0 for c in labelled for r in c.rollouts) >= 26
    again = label_steps(chains, ["2"] * 4, policy, tmp_path / "again", batch=3)
    assert again == labelled


def test_the_name_tells_whatever_decides_completions(folder: str) -> None:
    given: list[dict[str, Any]] = [
        {},
        {"temperature": 0.6},
        {"max_tokens": 20},
        {"dtype": "bfloat16"},
        {"batch_size": 4},
    ]
    names = [GenerateCompletion(folder, **options).name for options in given]
    assert len(set(names)) == len(names)
    assert "template=None" in names[0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 0.0}, "temperature > 0.*got temperature=0.0"),
        ({"dtype": "int8"}, "dtype to be one of auto, .*'int8'"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_arguments_out_of_range_are_named(folder: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GenerateCompletion(folder, **wrong)
