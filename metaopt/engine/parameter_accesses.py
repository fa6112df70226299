"""What a loss does with weights, seen operation by operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.engine import tree
from metaopt.engine.protocols import Tree


class ParameterAccesses(TorchDispatchMode):
    """Which memory a loss reads, which weights it writes, and what its reverse pass reads beside.

    Args:
        frozen, phi, theta: what must not be written.

    Attributes:
        written: which weight was written, in words; empty for none.
        scaled: whether an embedding scales its gradient by frequencies.
        backward: whether the reverse pass has begun.
        other: whether it has read a parameter that the forward pass did not.
        weights: parameters of modules that the forward pass has read, by memory.
        dtypes: which the forward pass has read.
    """

    def __init__(self, frozen: Tree, phi: Tree, theta: Tree) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {
            tensor.untyped_storage().data_ptr(): f"{whose} {key!r}"
            for whose, tensors in (
                ("the frozen weight", frozen),
                ("the outer variable's", phi),
                ("the parameter", theta),
            )
            for key, tensor in tensors.items()
            if tensor.numel()
        }
        self.written, self.scaled = "", False
        self.backward, self.other = False, False
        self.weights: dict[int, Tensor] = {}
        self.dtypes = set[torch.dtype]()
        self._forward: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is imported (2 s) to keep it out of this method

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        read = [t for t in tree.tensors((args, kwargs)) if t.layout is torch.strided]
        if self.backward:
            own = [t for t in read if isinstance(t, nn.Parameter)]
            self.other |= any(t.data_ptr() not in self._forward for t in own)
        else:
            self._forward.update(t.data_ptr() for t in read)
            self.weights.update((t.data_ptr(), t) for t in read if isinstance(t, nn.Parameter))
            self.dtypes.update(t.dtype for t in read)
        self._look(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which argument an operation writes, by its schema, and whether it scales."""
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        self.scaled |= bool(given.get("scale_grad_by_freq"))
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                # By storage: a row and `weight.data` are other tensors on the memory of the weight.
                for tensor in tree.tensors(given.get(argument.name)):
                    if tensor.layout is torch.strided:
                        memory = tensor.untyped_storage().data_ptr()
                        self.written = self.written or self._weights.get(memory, "")
