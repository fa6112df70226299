"""How much memory a call needs: the peak of what its tensors hold."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.engine.storages import Storages


class PeakMemory(TorchDispatchMode):
    """Count the bytes of tensor storage that is made inside the block and alive at the same time.

    with PeakMemory() as meter: call();  meter.peak

    Each storage counts once, from the operation that returns it until nothing refers to it. The
    count is exact and the same on every device; workspace inside one kernel is not in it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = Storages()

    @property
    def live(self) -> int:
        """The number of bytes alive now."""
        return self._storages.live

    @property
    def peak(self) -> int:
        """The largest number of bytes alive at one moment."""
        return self._storages.peak

    def restart(self) -> int:
        """Return the peak so far; from here on it is that of what follows."""
        peak, self._storages.peak = self._storages.peak, self._storages.live
        return peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _aliases(func):  # a view or an operation in place makes no storage
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor):
                    self._storages.add(tensor)
        return result


@functools.cache
def _aliases(func: Any) -> bool:
    """Return whether an operation's results are views of its arguments, or the arguments."""
    return any(r.alias_info is not None for r in func._schema.returns)
