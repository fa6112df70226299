"""A module as pure functions of named tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, nn

Tensors = dict[str, Tensor]
Architecture = Callable[[Sequence[int], int], nn.Module]
"""Makes a module from the shape of one input and the number of classes."""

Place = tuple[dict[str, Any], str, str, Tensor]
"""A dict of a module's parameters or buffers, a key in it, the name in the module, the tensor."""


class Network:
    """The tensors of a module by name, and its outputs as functions of them.

    `torch.func.functional_call` looks the names up at every call, which for a small network costs
    more than its forward pass; here the tensors are located once.

    Frozen parameters (`requires_grad=False`) count as buffers. Tied parameters have one name, the
    first.

    Args:
        build: makes the module; called once for the names, and once for each `init`.

    Attributes:
        params, buffers: names of what is trained and of what is not.
        frozen: names of the frozen parameters among the buffers.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        module = build()
        named = list(module.named_parameters())
        self.params = tuple(k for k, v in named if v.requires_grad)
        self.frozen = tuple(k for k, v in named if not v.requires_grad)
        self.buffers = (*self.frozen, *(k for k, _ in module.named_buffers()))
        self._training = Functional(module.train())
        self._evaluation = Functional(copy.deepcopy(module).eval())

    @cached_property
    def unfrozen(self) -> Network:
        """The same network with every parameter trained; itself where none is frozen."""
        return Network(lambda: self._build().requires_grad_(True)) if self.frozen else self

    def init(self, generator: Generator) -> Tensors:
        """Return new tensors under all names, as the module initialises them."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._build()
        named = [*module.named_parameters(), *module.named_buffers()]
        return {k: v.detach() for k, v in named}

    def train(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs with dropout and batch statistics; BatchNorm's buffers are updated."""
        return self._training(tensors, x)

    def evaluate(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs without dropout, BatchNorm on its running statistics."""
        return self._evaluation(tensors, x)


class Functional:
    """Calls a module with other tensors in the places of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.places = places(module)

    def __call__(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return module(x) with `tensors` by name; the module's own are put back."""
        try:
            for store, key, name, _ in self.places:
                store[key] = tensors[name]
            result: Tensor = self.module(x)
            return result
        finally:
            for store, key, _, tensor in self.places:
                store[key] = tensor


def places(module: nn.Module) -> list[Place]:
    """Return where a module holds its parameters and buffers."""
    first: dict[Tensor, str] = {}  # tied tensors go by the first of their names
    result: list[Place] = []
    for path, part in module.named_modules():
        stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for store in stores:
            for key, tensor in store.items():
                if tensor is not None:
                    name = first.setdefault(tensor, f"{path}.{key}" if path else key)
                    result.append((store, key, name, tensor))
    return result
