"""Texts as the mean hidden state of a frozen model of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt.data.folder import model_source
from metaopt.engine.ranges import check_ranges
from metaopt.nn.adapters import refuse_adapter
from metaopt.nn.feature_cache import FeatureCache, fingerprint
from metaopt.nn.pretrained import progress_bars


class Encoder:
    """The mean over tokens of a frozen model's last hidden layer.

    Args:
        source: a local folder or an id of the hub, of a model in safetensors and its tokenizer; or
            minilm or smollm2, which `metaopt-fetch` brings.
        max_length: most tokens of a text, >= 1; longer ones lose their end.
        batch: texts in a forward pass, >= 1.
        cache: folder that keeps features; see `metaopt.nn.feature_cache.FeatureCache`. `None` to
            keep none.

    Raises:
        OSError: there is no such model.
    """

    kind: str = "encoder"

    def __init__(
        self, source: str, max_length: int = 128, batch: int = 32, cache: str | None = None
    ) -> None:
        self.source, self.max_length, self.batch, self.cache = source, max_length, batch, cache
        check_ranges(self, "max_length >= 1", "batch >= 1")
        self.settings: Mapping[str, Any] = {"source": str(source), "max_length": max_length}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the features (n, d)."""
        from transformers import AutoModel, AutoTokenizer

        source = model_source(self.source)
        refuse_adapter(source)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with progress_bars():
            model = AutoModel.from_pretrained(source, trust_remote_code=False).eval()

        def read(chosen: Sequence[str]) -> list[Tensor]:
            rows: list[Tensor] = []
            for start in range(0, len(chosen), self.batch):
                rows += _pooled(
                    model, tokenizer, chosen[start : start + self.batch], self.max_length
                )
            return rows

        if self.cache is None:
            return torch.stack(read(texts))
        made_by = {
            "model": fingerprint(model, tokenizer), "pooling": "mean", "read": "start",
            "max_length": self.max_length,
        }  # fmt: skip
        items = [(text,) for text in texts]
        cached = FeatureCache(self.cache, made_by)
        return torch.stack(cached(items, lambda chunk: read([text for (text,) in chunk])))


@torch.no_grad()
def _pooled(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> list[Tensor]:
    """Return the mean state of each text's tokens."""
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row, dtype=torch.long), 1
    mask[:, 0] = 1  # of a text without tokens, too
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights = mask[..., None]
    return list((states * weights).sum(1) / weights.sum(1))
