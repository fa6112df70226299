"""Configurations of transformers models, from what a user names as a model's source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from metaopt.nn.adapters import refuse_adapter

Source = str | Path | Mapping[str, Any] | PretrainedConfig
IMAGE_TOKENS = ("image_token_id", "vision_start_token_id", "vision_end_token_id")


def configuration(source: Source, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the source's configuration; a dict gets the tokenizer's vocabulary."""
    refuse_adapter(source)
    if isinstance(source, (str, Path)):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    if isinstance(source, PretrainedConfig):
        return source
    if "model_type" not in source:
        raise ValueError(
            f"source needs a model_type, such as qwen2, with {', '.join(source)}; or give a "
            "folder or an id of the hub."
        )
    ids = {k: getattr(tokenizer, k) for k in ("pad_token_id", "bos_token_id", "eos_token_id")}
    size = len(tokenizer)
    values = dict(source)
    if "vision_config" in source:
        images = {name: size + i for i, name in enumerate(IMAGE_TOKENS) if name not in source}
        values = {**images, **source}
        size += len(images)
        values["text_config"] = {"vocab_size": size, **ids, **source.get("text_config", {})}
        given = values["text_config"]["vocab_size"]
    else:
        values = {"vocab_size": size, **ids, **source}
        given = values["vocab_size"]
    if given < size:
        raise ValueError(
            f"source has vocab_size={given}, fewer than the {size} tokens "
            "of its tokenizer; leave it out to take that number."
        )
    return AutoConfig.for_model(values.pop("model_type"), **values)


def is_visual(config: PretrainedConfig) -> bool:
    """Return whether a model of this configuration takes images as Qwen2-VL does."""
    return {"vision_config", *IMAGE_TOKENS} <= set(config.to_dict())
