"""Key-value caches of transformers among the arguments of a rematerialised block.

A block adds keys and values to the cache that it is given, and a recomputation would add them
again. Models of transformers make an empty cache in every call, also in training, unless they are
called with use_cache=False.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def is_cache(value: Any) -> bool:
    """Return whether a value behaves as such a cache."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


class Collector:
    """Stands for a cache that is empty for a block, and keeps what the block adds to it.

    Args:
        cache: the cache.
        block: name of the block, for messages.
        again: whether this is a recomputation: the cache itself is filled by then.

    Attributes:
        added: keys and values of each update.
    """

    def __init__(self, cache: Any, block: str, again: bool) -> None:
        self._cache, self._block, self._again = cache, block, again
        self.added: list[tuple[Tensor, Tensor]] = []
        self._rest: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Return keys and values as they are, which an empty cache does."""
        if not self._again and self._cache.get_seq_length(layer_idx):
            raise ValueError(self._message())
        self.added.append((keys, values))
        self._rest.append(((layer_idx, *args), kwargs))
        return keys, values

    def fill(self, added: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Give the cache itself keys and values, on the graph of the block's arguments."""
        for (keys, values), (args, kwargs) in zip(added, self._rest, strict=True):
            held = self._cache.update(keys, values, *args, **kwargs)
            if any(a.shape != b.shape for a, b in zip(held, (keys, values), strict=True)):
                raise ValueError(self._message())

    def _message(self) -> str:
        return (
            f"{self._block} is rematerialised and given a {type(self._cache).__name__} that is not "
            f"empty, or not of the length of its inputs. Call the model with use_cache=False, or "
            f"leave the block out of remat."
        )
