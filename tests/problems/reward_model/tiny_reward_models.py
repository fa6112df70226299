"""Tiny backbones and a tokenizer of a few words, for the tests of reward models."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerFast

WORDS = ["[UNK]", "<eos>", "[PAD]", "Yes", ".", "What", "is", "two", "and", ":", "Human", "Loire"]
WORDS += ["The", "Assistant"]
EOS, PAD = 1, 2
ROWS = [[3, 4], [5, 6, 7, 8, 7, 9, 7, EOS], [12, 13, EOS, 6], [10, 9, 3, EOS, EOS]]
TEXTS = ["Yes .", "What is two and two : two <eos>", "The Loire <eos> is", "Human : Yes <eos>"]


def config(kind: str, pad: int = PAD) -> PretrainedConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS), "eos_token_id": EOS, "bos_token_id": None, "pad_token_id": pad}
    more = {"max_position_embeddings": 32, "intermediate_size": 32, "initializer_range": 0.5}
    name = {"llama": "Llama", "gpt2": "GPT2", "bert": "Bert", "roberta": "Roberta"}[kind]
    return getattr(transformers, f"{name}Config")(**sizes, **ids, **more)


def tokenizer(pad: str | None = "[PAD]") -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="<eos>", pad_token=pad
    )


def padded(rows: list[list[int]], side: str, pad: int, extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return ids, mask
