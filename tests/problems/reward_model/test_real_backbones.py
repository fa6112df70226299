"""MiniLM and SmolLM2 as features and as backbones of reward models, read back by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real_models import real_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from metaopt.problems.reward_model.model.text_encoder import TextEncoder

pytestmark = [pytest.mark.slow, pytest.mark.realmodel]

ANSWERS = [
    ("What is the capital of France?", "It is Paris.", "Bananas grow on cheese."),
    ("What is 2 + 3?", "2 + 3 = 5.", "The moon is a spoon."),
    ("What do bees make?", "They make honey.", "They make trousers."),
    ("Which animal barks?", "A dog barks.", "A stone barks."),
] * 3
"""Questions with a right and an absurd answer."""

BACKBONES = {
    "minilm": ("mean", ["query", "value"], "RewardModel"),
    "smollm2": ("last", ["q_proj", "v_proj"], "LlamaForSequenceClassification"),
}
RATE = 16 / 4
"""alpha / r of the adapters."""


def pooled(model: Any, tokenizer: Any, text: str, pooling: str) -> Tensor:
    """The hidden state of one text, alone and without padding."""
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return hidden.mean(0) if pooling == "mean" else hidden[-1]


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_the_pooled_states_of_each_text_alone(name: str) -> None:
    folder, pooling = real_model(name), BACKBONES[name][0]
    texts = [" ".join(row[:2]) for row in ANSWERS[:4]] + ["A dog.", "One puppy!", "Tax law"]
    result = TextEncoder(folder, pooling)(texts)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = torch.stack([pooled(model, tokenizer, text, pooling) for text in texts])
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    if name == "minilm":
        dog, puppy, law = torch.nn.functional.normalize(result[-3:], dim=-1)
        assert dog @ puppy > 0.5 > 0.2 > dog @ law


@pytest.mark.parametrize("trained", ["frozen", "lora"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_trained_model_scores_the_same_in_transformers(
    metaopt: Callable[..., Any], name: str, trained: str
) -> None:
    folder, (pooling, targets, architecture) = real_model(name), BACKBONES[name]
    rows = [
        {"prompt": f"{question} ({i}) ", "chosen": right, "rejected": absurd}
        for i, (question, right, absurd) in enumerate(ANSWERS)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["problem.task.frozen=true"] if trained == "frozen" else [
        "+problem.task.lora.r=4", "+problem.task.lora.lora_alpha=16",
        f"+problem.task.lora.target_modules=[{','.join(targets)}]",
    ]  # fmt: skip
    done = metaopt(
        "problem=reward_model/text", f"problem.task.backbone={folder}", *options,
        f"problem.task.pooling={pooling}", "problem.task.source.source=pairs.jsonl",
        "problem.task.training=0.5", "problem.task.max_length=32", "problem.batch=2",
        "problem.prompts=1", "outer_steps=2", "outer_lr=0.01",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"{architecture} in run/reward_model, read back" in done.out

    outer = {k: v[0] for k, v in load_file("run/outer.safetensors").items()}
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    adapted = [k for k in outer if "lora_A" in k]
    layers = model.config.num_hidden_layers
    assert len(adapted) == (2 * layers if trained == "lora" else 0)
    for name_a in adapted:
        layer = model.get_submodule(name_a.removeprefix("backbone.").partition(".lora_A")[0])
        with torch.no_grad():
            layer.weight += RATE * outer[name_a.replace("lora_A", "lora_B")] @ outer[name_a]
    texts = [f"{row['prompt']}{row[side]}" for row in rows for side in ("chosen", "rejected")]
    expected = torch.stack(
        [pooled(model, tokenizer, text, pooling) @ outer["score.weight"][0] for text in texts]
    )
    delivered = AutoModelForSequenceClassification.from_pretrained(
        "run/reward_model", trust_remote_code=True
    )
    assert type(delivered).__name__ == architecture
    words = AutoTokenizer.from_pretrained("run/reward_model")
    batch = words(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        scores = delivered(ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.01
