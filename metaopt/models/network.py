"""A module as pure functions of named tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

Tensors = dict[str, Tensor]
Architecture = Callable[[Sequence[int], int], nn.Module]
"""Makes a module from the shape of one input and the number of classes."""


class Network:
    """The tensors of a module by name, and its outputs as functions of them.

    Frozen parameters (`requires_grad=False`) count as buffers.

    Args:
        build: makes the module; called once for the names, and once for each `init`.

    Attributes:
        params, buffers: names of what is trained and of what is not.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self._training = build().train()
        self._evaluation = copy.deepcopy(self._training).eval()
        named = list(self._training.named_parameters())
        self.params = tuple(k for k, v in named if v.requires_grad)
        frozen = [k for k, v in named if not v.requires_grad]
        self.buffers = (*frozen, *(k for k, _ in self._training.named_buffers()))
        self._names = (*self.params, *self.buffers)

    def init(self, generator: Generator) -> Tensors:
        """Return new tensors under all names, as the module initialises them."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._build()
        return {k: v.detach() for k, v in module.state_dict(keep_vars=True).items()}

    def train(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs with dropout and batch statistics; BatchNorm's buffers are updated."""
        return functional_call(self._training, self._own(tensors), (x,))

    def evaluate(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs without dropout, BatchNorm on its running statistics."""
        return functional_call(self._evaluation, self._own(tensors), (x,))

    def _own(self, tensors: Mapping[str, Tensor]) -> Tensors:
        return {k: tensors[k] for k in self._names}
