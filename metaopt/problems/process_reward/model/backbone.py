"""A transformers model with a head that reads one number where a step ends."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from metaopt.engine.remat_blocks import remat_blocks
from metaopt.nn.configuration import Source, is_visual
from metaopt.nn.lora import add_adapters, lora_config, merge_adapters
from metaopt.nn.pretrained import progress_bars

SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class StepReader(nn.Module):
    """z = w . h + b, or w . (V h) + b with V the language model's map to words.

    Args:
        backbone: returns last_hidden_state.
        vocabulary: V, or `None`.
        head: w and b; they are applied in their own precision.
        autocast: precision of what comes before the head, or `None` for that of the weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        vocabulary: nn.Linear | None,
        head: nn.Linear,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.backbone, self.vocabulary, self.head = backbone, vocabulary, head
        self.autocast = autocast
        self.causal = True

    def forward(self, batch: tuple[Mapping[str, Tensor], Tensor, Tensor]) -> Tensor:
        """Return z (B, S) from what the backbone takes, lengths (B,) and places (B, S).

        Rows are padded on the right, where a causal model does not look; others get a mask.
        """
        inputs, lengths, ends = batch
        kind = lengths.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            hidden = self.backbone(**inputs, **self._mask(inputs, lengths)).last_hidden_state
            rows = torch.arange(len(ends), device=ends.device)
            read = hidden[rows[:, None], ends]
            if self.vocabulary is not None:
                read = self.vocabulary(read)
        with torch.autocast(kind, enabled=False):
            result: Tensor = self.head(read.to(self.head.weight.dtype)).squeeze(-1)
            return result

    def _mask(self, inputs: Mapping[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        if self.causal:
            return {}
        places = torch.arange(inputs["input_ids"].shape[1], device=lengths.device)
        return {"attention_mask": (places < lengths[:, None]).long()}


@dataclass(eq=False)
class Backbone:
    """Builds `StepReader`s; see `TransformerScorer` for the arguments.

    Args:
        config: of the source, see `configuration`.
        dtype: of all weights but the head's, and with adapters of the frozen ones.
        autocast: see `StepReader`.
    """

    source: Source
    config: PretrainedConfig
    head: str
    dtype: torch.dtype
    autocast: torch.dtype | None
    attention: str
    lora: Mapping[str, Any] | None
    seed: int
    remat: str | None

    def __post_init__(self) -> None:
        if self.lora is not None:
            lora_config(self.lora)
            self.dtype = self.autocast or self.dtype

    def build(self, seed: int) -> StepReader:
        """Return a module whose new weights are drawn from `seed`.

        Raises:
            ValueError: the vocabulary head of a model that scales or caps its logits, or a pattern
                that no layer matches.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed if self.lora is None else self.seed)
            backbone, vocabulary = self._parts(self._model())
            torch.manual_seed(seed)
            if self.lora is not None:
                add_adapters(backbone, self.lora)
                if vocabulary is not None:
                    vocabulary.requires_grad_(False)
            if self.remat is not None:
                remat_blocks(backbone, self.remat)
            width = backbone.config.get_text_config().hidden_size
            outputs = width if vocabulary is None else vocabulary.weight.shape[0]
            head = nn.Linear(outputs, 1)
            reader = StepReader(backbone, vocabulary, head, self.autocast)
            reader.causal = is_causal(reader.eval().backbone)
        return reader

    @torch.no_grad()
    def merged(self, tensors: Mapping[str, Tensor]) -> StepReader:
        """Return a module of these tensors with adapters and V multiplied out, in float32.

        w . (V h + c) + b = (V^T w) . h + (w . c + b). Where there is neither an adapter nor a V the
        backbone keeps its precision.
        """
        reader = self.build(self.seed)
        reader.load_state_dict(tensors, strict=False)
        if self.lora is not None:
            merge_adapters(reader.backbone.float())
        if reader.vocabulary is not None:
            words, head = reader.vocabulary, reader.head
            folded = nn.Linear(words.in_features, 1)
            folded.weight.copy_(head.weight.double() @ words.weight.double())
            shift = 0 if words.bias is None else head.weight.double() @ words.bias.double()
            folded.bias.copy_(head.bias.double() + shift)
            reader.vocabulary, reader.head = None, folded
        return reader

    def _model(self) -> Any:
        kind: Any = AutoModel
        if self.head == "vocabulary":
            visual = is_visual(self.config)
            kind = AutoModelForImageTextToText if visual else AutoModelForCausalLM
        how: dict[str, Any] = {
            "attn_implementation": self.attention,
            "dtype": self.dtype,
            "trust_remote_code": False,
        }
        if isinstance(self.source, (str, Path)):
            with progress_bars():
                return kind.from_pretrained(self.source, use_safetensors=True, **how)
        return kind.from_config(copy.deepcopy(self.config), **how)  # which it would change

    def _parts(self, model: Any) -> tuple[Any, Any]:
        text = model.config.get_text_config()
        text.use_cache = False
        if self.head == "hidden":
            if "pooler" in dict(model.named_children()):
                model.pooler = None
            return model, None
        scaled = [k for k in SCALED if getattr(text, k, None) not in (None, 1.0)]
        if scaled:
            raise ValueError(
                f'head="vocabulary" needs logits that are linear in the hidden state; this model '
                f"has {scaled[0]}={getattr(text, scaled[0])}. Take head=hidden."
            )
        return model.base_model, model.get_output_embeddings()


@torch.no_grad()
def is_causal(backbone: Any) -> bool:
    """Ask the model itself: does the second token change what it says of the first?"""
    rows = [
        backbone(input_ids=torch.tensor([[1, token]])).last_hidden_state[0, 0] for token in (1, 2)
    ]
    return torch.equal(*rows)
