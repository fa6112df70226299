"""Texts as frozen features of a pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from metaopt.engine.ranges import check_ranges
from metaopt.nn.adapters import refuse_adapter
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.model.tokens import read_texts


class TextEncoder:
    """h(text), the pooled hidden state of each text; see `RewardModel.features`.

    Args:
        source: a local folder or an id of the hub, of a model in safetensors and its tokenizer.
        pooling: mean (of an encoder), last (of a causal language model), or last_not_pad.
        max_length: most tokens of a text, >= 1; longer ones lose their beginning.
        device: where they are read; the features come back to the CPU.
        batch: texts in a forward pass, >= 1.

    Raises:
        ValueError: max_length or batch below 1, or an unknown pooling.
        OSError: there is no such folder or model.
    """

    def __init__(
        self,
        source: str | Path,
        pooling: str = "mean",
        max_length: int = 512,
        device: str = "cpu",
        batch: int = 32,
    ) -> None:
        self.max_length, self.batch, self.device = max_length, batch, torch.device(device)
        check_ranges(self, "max_length >= 1", "batch >= 1")
        refuse_adapter(source)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            model = RewardModel.on(source, pooling)
        except OSError as error:
            raise OSError(
                f"source={str(source)!r} must be a folder, or an id of the hub, with a model in "
                f"safetensors and its tokenizer; it cannot be read: {error}."
            ) from error
        self.model: Any = torch.nn.Module.to(model.eval(), self.device)  # type: ignore[no-untyped-call]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the features (n, d) of texts."""
        read, limit = self.model.features, self.max_length
        return read_texts(read, self.tokenizer, texts, self.batch, self.device, limit)[0]
