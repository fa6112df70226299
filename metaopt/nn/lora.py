"""Low-rank adapters on a frozen model, and their products added to its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def lora_config(lora: Mapping[str, Any]) -> Any:
    """Return `peft.LoraConfig(**lora)`.

    Raises:
        ImportError: peft is not installed.
        ValueError: an argument that it does not take.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(
            "lora needs peft: pip install metaopt[lora]; or leave lora out to train every weight."
        ) from error
    try:
        return LoraConfig(**lora)
    except TypeError as error:
        raise ValueError(f"lora must hold arguments of peft.LoraConfig: {error}.") from error


def add_adapters(model: nn.Module, lora: Mapping[str, Any]) -> None:
    """Freeze a model and add adapters, in float32, to it.

    w <- w + (alpha / r) B A, with B = 0 at first.

    Args:
        model: a transformers model.
        lora: arguments of `peft.LoraConfig`.

    Raises:
        ImportError, ValueError: see `lora_config`; or no layer has a name of `target_modules`.

    References: Hu et al., LoRA, ICLR 2022.
    """
    config = lora_config(lora)
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:  # of peft, which names no layer of the model
        layers = {
            k.rpartition(".")[2] for k, v in model.named_modules() if isinstance(v, nn.Linear)
        }
        raise ValueError(
            f"lora: {error} The linear layers of {type(model).__name__} are "
            f"{', '.join(sorted(layers))}; set lora.target_modules."
        ) from error
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data.float()


def merge_adapters(model: nn.Module) -> None:
    """Add each adapter's product to the weight it adapts, and take the adapter out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(model.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            model.set_submodule(name, part.get_base_layer())
