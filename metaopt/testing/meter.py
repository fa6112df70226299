"""How much memory a call needs: the peak of what its tensors hold."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Count the bytes of tensor storage that is made inside the block and alive at the same time.

    with PeakMemory() as meter: call();  meter.peak

    Each storage counts once, from the operation that returns it until nothing refers to it. The
    count is exact and the same on every device; workspace inside one kernel is not in it.

    Attributes:
        peak: largest number of bytes alive at one moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _aliases(func):  # a view or an operation in place makes no storage
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor):
                    self._enter(tensor)
        self.peak = max(self.peak, self.live)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity in self._sizes:
            return
        self._sizes[identity] = size = storage.nbytes()
        self.live += size
        # Not at exit, where torch is gone before its storages are.
        weakref.finalize(storage, self._leave, identity).atexit = False

    def _leave(self, identity: int) -> None:
        self.live -= self._sizes.pop(identity)


@functools.cache
def _aliases(func: Any) -> bool:
    """Return whether an operation's results are views of its arguments, or the arguments."""
    return any(r.alias_info is not None for r in func._schema.returns)
