"""A tiny encoder in a folder, a run of few-shot re-ranking on texts, and a BEIR folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from metaopt.nn.encoder import Encoder
from metaopt.nn.word_tokenizer import word_tokenizer
from metaopt.problems.few_shot_ranking.collections import Collection
from metaopt.problems.few_shot_ranking.text_world import text_world

BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def tiny_encoder(folder: Path, texts: Any, seed: int = 0) -> Encoder:
    """Return an encoder of words with random weights, written to a folder."""
    from transformers import AutoModel, BertConfig

    words = word_tokenizer(texts)
    torch.manual_seed(seed)
    model = AutoModel.from_config(BertConfig(**BERT, vocab_size=len(words)))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return Encoder(str(folder), max_length=32)


def write_beir(folder: Path, collection: Collection) -> Path:
    """Write a collection as a BEIR folder."""
    folder.mkdir(exist_ok=True)
    for name, texts in (("corpus", collection.documents), ("queries", collection.queries)):
        rows = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    (folder / "qrels").mkdir(exist_ok=True)
    lines = [f"{q}\t{d}\t{g:g}\n" for q, row in collection.gains.items() for d, g in row.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def small_world() -> Collection:
    """Return 64 queries and 288 documents; a query has six relevant ones."""
    return text_world(queries=64, documents=288)
