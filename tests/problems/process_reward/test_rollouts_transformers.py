"""Rollouts of a local transformers model: their law is the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from metaopt.llm import Client
from metaopt.llm.transformers_lm import TransformersLM
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.labelling.llm import ClientCompletion
from metaopt.problems.process_reward.labelling.rollouts import label_steps

WORDS = ["<end>", "<unknown>", "0", "1", "2", "3", "4", "+", "=", "A:", "so"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("model")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=0, bos_token_id=None,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


def policy(folder: str, batch_size: int = 16, **options: Any) -> ClientCompletion:
    lm = TransformersLM(folder, batch_size=batch_size)
    return ClientCompletion(Client({"policy": lm}, concurrency=batch_size), prefill=True, **options)


def law(folder: str, text: str, temperature: float) -> np.ndarray:
    """Return the distribution of the next word, from a forward pass without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(tokens).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).numpy()


@pytest.mark.slow
def test_the_first_word_has_the_models_distribution(folder: str) -> None:
    rollouts = policy(folder, 400, temperature=0.7, max_tokens=60)
    prompts = ["1 + 1 =", "0"] * 200
    prefixes: list[list[str]] = [["so 1", "+ 2 = 3"], []] * 200
    completions = rollouts.complete(prompts, prefixes, np.random.default_rng(0))
    assert len(completions) == 400
    for kind, text in enumerate(("1 + 1 = so 1 + 2 = 3", "0")):
        said = [x for x in completions[kind::2] if x is not None]
        assert len(said) > 190
        firsts = [next(i for i, w in enumerate(WORDS) if x.startswith(w)) if x else 0 for x in said]
        expected = len(said) * law(folder, text, 0.7)
        often = expected > 5
        counts = np.bincount(firsts, minlength=len(WORDS))
        rest = counts[~often].sum(), expected[~often].sum()
        observed, wanted = np.append(counts[often], rest[0]), np.append(expected[often], rest[1])
        assert often.sum() > 2
        assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.slow
def test_draws_are_a_function_of_the_generator(folder: str) -> None:
    before = torch.get_rng_state()
    args: Any = (["1"] * 10, [["so"]] * 10)
    one, same, other = (
        policy(folder, size, max_tokens=60).complete(*args, np.random.default_rng(seed))
        for size, seed in ((4, 1), (3, 1), (4, 2))  # whatever is in a batch
    )
    assert one == same != other
    assert len(set(one)) > 3
    assert torch.equal(before, torch.get_rng_state())


def test_a_completion_that_is_cut_off_is_none(folder: str) -> None:
    completions = policy(folder, temperature=1.0, max_tokens=1).complete(
        ["1"] * 200, [[]] * 200, np.random.default_rng(0)
    )
    ended = law(folder, "1", 1.0)[0]
    assert set(completions) <= {None, ""}
    share = np.mean([x == "" for x in completions])
    assert share == pytest.approx(ended, abs=4 * np.sqrt(ended * (1 - ended) / 200) + 1e-9)


def test_labels_from_a_local_model(folder: str, tmp_path: Path) -> None:
    rollouts = policy(folder, temperature=1.0, max_tokens=30)
    chains = [Chain("1 + 1 =", ("so 1", "+ 1"), qid=str(i)) for i in range(4)]
    labelled = label_steps(chains, ["2"] * 4, rollouts, tmp_path, batch=3)
    assert {r in range(9) for c in labelled for r in c.rollouts} == {True}
    assert sum(r or 0 for c in labelled for r in c.rollouts) >= 26
    again = label_steps(chains, ["2"] * 4, rollouts, tmp_path / "again", batch=3)
    assert again == labelled
