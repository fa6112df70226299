"""Layers that keep only their inputs and are recomputed in the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from metaopt.engine.functional import Place, places


def checkpoint_layers(model: nn.Module) -> None:
    """Let each layer of a transformers model keep its inputs alone for the backward pass.

    Memory: the inputs of all layers and the activations of one. Cost: one more forward pass in each
    backward pass. Losses and gradients of every order are the same, dropout included.

    transformers' own checkpointing recomputes a layer with the tensors that the module holds in
    the backward pass. With `functional_call` these are others than in the forward pass; here the
    layer gets the ones it had.

    Raises:
        ValueError: a model without such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"checkpointing needs a model made of transformers' GradientCheckpointingLayer; "
            f"{type(model).__name__} has none. Set checkpointing=false."
        )
    for layer in layers:
        layer.forward = _Checkpointed(layer)


class _Checkpointed:
    """The forward function of a layer, checkpointed wherever gradients are enabled.

    Whether an argument requires one makes no difference, so that an evaluation that is recorded and
    one that is replayed make the same calls; see `metaopt.estimators.constants`.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.forward = layer, layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _AsBefore(self.layer)

        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


class _AsBefore:
    """Inside the block a module holds the tensors that it held where this was made.

    A class, not a generator: gradients of a second order enter the block several times.

    Raises:
        RuntimeError: one of them was changed in place since then.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = self.current = places(module)
        self.versions = [tensor._version for *_, tensor in self.before]

    def __enter__(self) -> None:
        if [tensor._version for *_, tensor in self.before] != self.versions:
            raise RuntimeError(
                "weights of a checkpointed layer were changed in place between its forward and its "
                "backward pass, which needs them again. Change them after it, or set "
                "checkpointing=false."
            )
        self.current = places(self.module)
        _place(self.before)

    def __exit__(self, *error: object) -> None:
        _place(self.current)


def _place(held: list[Place]) -> None:
    for store, key, _, tensor in held:
        store[key] = tensor
