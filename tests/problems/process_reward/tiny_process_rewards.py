"""Chains and tiny settings that the tests of process reward models share."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Answer:
    prompt: str
    steps: tuple[str, ...]
    images: tuple[str, ...] = ()


CHAINS = [
    Answer("3 + 4 * 2", ("4 * 2 = 3", "3 + 3 = 1")),
    Answer("1 - 2", ("1 - 2 = 4",)),
    Answer("2 * 2 + 4", ("2 * 2 = 4", "4 + 4 = 3", "3 = 3")),
]
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "initializer_range": 0.5,
    "max_position_embeddings": 128,
}
SOURCE = {"model_type": "qwen2", **TEXT}


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def frozen(scorer):
    """Return the weights that are not trained, by name; those that are have no storage there."""
    named = scorer.reader.named_parameters()
    return {k: v.detach() for k, v in named if v.device.type != "meta"}


def by_transformers(folder, chain):
    """Scores by the first half of the card's own program, which imports transformers alone."""
    page = (folder / "README.md").read_text()
    program = page.split("```python\n")[1].split("\n# the same")[0]
    assert "metaopt" not in program
    names = {"FOLDER": folder, "PROMPT": chain.prompt, "STEPS": chain.steps}
    with torch.no_grad():
        exec(program, names)
    return names["log_odds"], type(names["model"]).__name__
