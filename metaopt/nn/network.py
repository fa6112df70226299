"""A module as pure functions of named tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor, nn

from metaopt.engine.functional import functional_call

Tensors = dict[str, Tensor]
Architecture = Callable[[Sequence[int], int], nn.Module]
"""Makes a module from the shape of one input and the number of classes."""


class Network:
    """The tensors of a module by name, and its outputs as functions of them.

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
        self._training = module.train()
        self._evaluation = copy.deepcopy(module).eval()

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

    def draws_noise(self, x: Tensor) -> bool:
        """Return whether the module draws random numbers in training, as dropout does."""
        with torch.random.fork_rng(devices=[]):
            tensors, before = self.init(torch.Generator()), torch.get_rng_state()
            self.train(tensors, x)
            return not torch.equal(before, torch.get_rng_state())

    def train(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs with dropout and batch statistics; BatchNorm's buffers are updated."""
        return self._call(self._training, tensors, x)

    def evaluate(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs without dropout, BatchNorm on its running statistics."""
        return self._call(self._evaluation, tensors, x)

    def _call(self, module: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        # Of its own alone: `tensors` may have those of another network as well.
        own = {name: tensors[name] for name in (*self.params, *self.buffers)}
        outputs: Tensor = functional_call(module, own, (x,))
        return outputs
