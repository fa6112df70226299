"""How many bytes of tensor storage are alive."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Storages:
    """The storages of tensors, each counted once, until nothing refers to it.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at one moment.
    """

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor."""
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity in self._sizes:
            return
        self._sizes[identity] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        # Not at exit, where torch is gone before its storages are.
        weakref.finalize(storage, self._leave, identity).atexit = False

    def _leave(self, identity: int) -> None:
        self.live -= self._sizes.pop(identity)

    def saved(self) -> saved_tensors_hooks:
        """Return a block in which what graphs save is counted."""

        def pack(tensor: Tensor) -> Tensor:
            self.add(tensor)
            return tensor.detach()  # an output itself would hold its own graph, and never go

        return saved_tensors_hooks(pack, lambda tensor: tensor)
