"""Modules that hold what is frozen, and get what is trained from `functional_call`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from metaopt.engine.functional import places

M = TypeVar("M", bound=nn.Module)


def move(module: nn.Module, device: torch.device) -> None:
    """Move the module's own tensors, but not the placeholders of what is trained, to a device."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "meta" and tensor.device != device:
            tensor.data = tensor.data.to(device)


def without_trained(module: M) -> M:
    """Return the module with placeholders for what it trains, of which it keeps no copy."""
    placeholders: dict[Tensor, Tensor] = {}
    for store, key, _, own in places(module):
        if own.requires_grad:
            # Of a tied parameter one placeholder, so that it stays tied.
            store[key] = placeholders.setdefault(own, own.detach().to("meta"))
    return module


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put copies of tensors in the places of a module's placeholders, by name."""
    held = places(module)
    values = {
        own: nn.Parameter(tensors[name].detach().clone(), requires_grad=False)
        for _, _, name, own in held
        if name in tensors
    }
    for store, key, _, own in held:
        store[key] = values.get(own, own)
