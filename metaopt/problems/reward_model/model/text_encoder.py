"""Texts as frozen features of a pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from metaopt.data.folder import model_source
from metaopt.engine.ranges import check_ranges
from metaopt.nn.adapters import refuse_adapter
from metaopt.nn.feature_cache import FeatureCache, fingerprint
from metaopt.nn.pretrained import progress_bars
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.model.tokens import check_room, read_texts


class TextEncoder:
    """h(text), the pooled hidden state of each text; see `RewardModel.features`.

    Args:
        source: a local folder or an id of the hub, of a model in safetensors and its tokenizer; or
            minilm or smollm2, which `metaopt-fetch` brings.
        pooling: mean (of an encoder), last (of a causal language model), or last_not_pad.
        max_length: most tokens of a text, >= 1; longer ones lose their beginning.
        device: where they are read; the features come back to the CPU.
        batch: texts in a forward pass, >= 1.
        cache: folder that keeps features, rounded to float16, by the hash of the text and of what
            made them, see `FeatureCache`; `None` to keep none.

    Raises:
        ValueError: max_length or batch below 1, a max_length beyond the model's positions, or an
            unknown pooling.
        OSError: there is no such folder or model.
    """

    def __init__(
        self,
        source: str | Path,
        pooling: str = "mean",
        max_length: int = 512,
        device: str = "cpu",
        batch: int = 32,
        cache: str | Path | None = None,
    ) -> None:
        self.max_length, self.batch, self.device = max_length, batch, torch.device(device)
        check_ranges(self, "max_length >= 1", "batch >= 1")
        source = model_source(source)
        refuse_adapter(source)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            with progress_bars():
                model = RewardModel.on(source, pooling)
        except OSError as error:
            raise OSError(
                f"source={str(source)!r} must be a folder, or an id of the hub, with a model in "
                f"safetensors and its tokenizer; it cannot be read: {str(error).rstrip('.')}."
            ) from error
        check_room(max_length, model)
        self.model: Any = torch.nn.Module.to(model.eval(), self.device)  # type: ignore[no-untyped-call]
        self.cache = cache

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the features (n, d) of texts."""
        return frozen_features(
            self.model, self.tokenizer, texts, self.max_length, self.batch, self.cache
        )


def frozen_features(
    model: RewardModel,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    batch: int,
    cache: str | Path | None = None,
) -> Tensor:
    """Return the pooled hidden states (n, d) of texts, without dropout, on the CPU.

    Args:
        model: its backbone and pooling read; it is put in evaluation mode.
        tokenizer: the backbone's.
        texts, max_length, batch, cache: see `TextEncoder`.
    """
    model.eval()  # type: ignore[no-untyped-call]

    def read(chosen: Sequence[str]) -> Tensor:
        device = model.device
        return read_texts(model.features, tokenizer, chosen, batch, device, max_length)[0]

    if cache is None:
        return read(texts)
    made_by = {
        "model": fingerprint(model.backbone, tokenizer),
        "pooling": model.config.pooling,
        "max_length": max_length,
    }
    items = [(text,) for text in texts]
    rows = FeatureCache(cache, made_by)(
        items, lambda chunk: list(read([text for (text,) in chunk]))
    )
    return torch.stack(rows)
