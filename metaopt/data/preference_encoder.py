"""Texts as frozen features of a pretrained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from metaopt.data.preferences import Pair
from metaopt.models.reward_model import RewardModel
from metaopt.models.reward_model_export import encode


class Hidden:
    """h(prompt + answer) of both answers of pairs, each text read once; see `RewardModel.features`.

    Args:
        pairs: texts.
        encoder: a local folder or an id of the hub, of a model in safetensors and its tokenizer.
        pooling: mean (of an encoder), last (of a causal language model), or last_not_pad.
        max_length: most tokens of a text, >= 1; longer ones lose their beginning.
        device: where they are read; the features come back to the processor.
        batch: texts in a forward pass.

    Raises:
        ValueError: max_length < 1, or an unknown pooling.
        OSError: there is no such folder or model.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        encoder: str | Path,
        pooling: str = "mean",
        max_length: int = 512,
        device: str = "cpu",
        batch: int = 32,
    ) -> None:
        if max_length < 1:
            raise ValueError(f"an encoder needs max_length >= 1; got {max_length}.")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
            model = RewardModel.on(encoder, pooling)
        except OSError as error:
            raise OSError(
                f"encoder={str(encoder)!r} must be a folder, or an id of the hub, with a model in "
                f"safetensors and its tokenizer; it cannot be read: {error}. Give another one, or "
                "leave encoder out for TF-IDF and SVD."
            ) from error
        torch.nn.Module.to(model.eval(), torch.device(device))
        texts = [f"{p.prompt}{side}" for p in pairs for side in (p.chosen, p.rejected)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(order), batch):
                some = [texts[i] for i in order[start : start + batch]]
                ids, mask, _ = encode(tokenizer, some, max_length)
                found.append(model.features(ids.to(device), mask.to(device)).cpu())
        self.states = torch.cat(found)[torch.tensor(order).argsort()].view(len(pairs), 2, -1)

    def fitted(self, rows: Any, sizes: Sequence[int], seed: int) -> Callable[[Any], Tensor]:
        """Return a function from indices (m,) of pairs to features (m, 2, d), (h - mean) / std.

        Args:
            rows: indices of the training pairs, over whose answers mean and deviation are taken.
            sizes, seed: of features that are fitted; these are not.
        """
        own = self.states[np.asarray(rows)].flatten(0, 1)
        mean, std = own.mean(0), own.std(0, correction=0).clamp(min=1e-6)
        return lambda chosen: (self.states[np.asarray(chosen)] - mean) / std
