"""Tiny random models in folders, with the words of a few chains as their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from metaopt.nn.word_tokenizer import word_tokenizer
from metaopt.problems.process_reward.data.formats import Chain

CHAINS = [
    Chain("add two and three", ("two and three", "so it is five")),
    Chain("what is one", ("one", "is", "one is one")),
    Chain("add two and three", ("it is six",)),
    Chain("add two and three", ("three and two is five", "it is", "five")),
]
TINY = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 16,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
LLAMA = {**TINY, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}
GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "initializer_range": 0.3,
}  # fmt: skip
BERT = {**TINY, "model_type": "bert"}


def saved(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """Write a random model in float64, and its tokenizer."""
    words = word_tokenizer(text for chain in CHAINS for text in (chain.prompt, *chain.steps))
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    config = {"vocab_size": len(words), "pad_token_id": 0, **config}
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    auto: Any = AutoModel if made.model_type == "bert" else AutoModelForCausalLM
    auto.from_config(made, dtype=torch.float64).save_pretrained(folder)
    return folder
