"""Process reward models on the two real models that `metaopt-fetch` brings."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from real_models import real_model
from tiny_process_rewards import Answer, by_transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from metaopt.engine.random import generator
from metaopt.nn.model_card import ModelCard
from metaopt.problems.process_reward.model.export import export
from metaopt.problems.process_reward.model.frozen_reader import FrozenReader
from metaopt.problems.process_reward.model.scorer import TransformerScorer
from metaopt.problems.process_reward.model.steps import scores

pytestmark = [pytest.mark.slow, pytest.mark.realmodel]

CHAINS = [
    Answer("Tom has 3 apples and buys 4. How many has he?", ("He buys 4.", "3 + 4 = 7.")),
    Answer("Tom has 3 apples and buys 4. How many has he?", ("3 + 4 = 9 purple of.",)),
    Answer("What is the capital of France?", ("It is on the Seine.", "It is Paris.")),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "smollm2": {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}},
    "minilm": {"layout": "prefix"},
}
TRAINED = {"smollm2": "LlamaForTokenClassification", "minilm": "BertForTokenClassification"}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_delivered_folder_scores_the_same_in_transformers(name: str, tmp_path: Path) -> None:
    transformers.logging.disable_progress_bar()
    source = real_model(name)
    scorer = TransformerScorer(CHAINS, source, **OPTIONS[name])
    draw = generator(0)
    params = scorer.init(draw)[0]
    params = {k: v + 0.01 * torch.randn(v.shape, generator=draw) for k, v in params.items()}
    card = ModelCard("3 chains", {"none": 0.0}, base=name)
    assert export(scorer, params, tmp_path / "out", card, CHAINS) <= 1e-4
    steps = scorer.encode(CHAINS)
    expected = scores(scorer, params, steps)
    assert expected[steps.mask].std() > 1e-3
    for i, chain in enumerate(CHAINS):
        log_odds, kind = by_transformers(tmp_path / "out", chain)
        assert kind == TRAINED[name]
        torch.testing.assert_close(log_odds, expected[i][steps.mask[i]], rtol=1e-4, atol=1e-4)
    shutil.rmtree(tmp_path / "out")  # half a gigabyte


def test_a_real_language_model_reads_answers_together_as_it_does_apart() -> None:
    source = real_model("smollm2")  # grouped attention, tied embeddings, pad = eos
    reader = FrozenReader(source, [15], likelihood=True)
    assert reader.shares_rows
    features = reader(CHAINS)
    for x, chain in zip(features, CHAINS, strict=True):
        (alone,) = reader([chain])
        torch.testing.assert_close(x, alone, rtol=1e-3, atol=2e-3)
    assert features[0][1, -1] > features[1][0, -1] + 1  # nats per token
    tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = [t for text in (CHAINS[2].prompt, *CHAINS[2].steps) for piece in (text, "\n\n")
           for t in tokenizer(piece)["input_ids"]]  # fmt: skip
    start = len(tokenizer(CHAINS[2].prompt)["input_ids"]) + len(tokenizer("\n\n")["input_ids"])
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    log_p = out.logits[0, :-1].log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    torch.testing.assert_close(features[2][-1, -1], log_p[start - 1 :].mean(), rtol=0, atol=1e-3)
    state = out.hidden_states[15][0, -1]
    torch.testing.assert_close(features[2][-1, :-2], state, rtol=1e-3, atol=2e-3)


def test_a_prompt_in_the_chat_template_is_read_as_its_tokens() -> None:
    reader = FrozenReader(real_model("smollm2"), [1])
    tokenizer = reader.tokens.tokenizer
    turns = [{"role": "user", "content": CHAINS[0].prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    chain = replace(CHAINS[0], prompt=text)
    rows, _ = reader._rows([(chain.prompt, *chain.steps)])
    assert rows[0].stem == [*ids, *reader.tokens.separator]
