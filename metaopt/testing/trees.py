"""What the contracts compare: trees to the bit, their form, and the tensors still alive."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def identical(a: Any, b: Any) -> bool:
    """Return whether two trees agree to the bit: types, keys in order, shapes, dtypes, values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b or (a != a and b != b))


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def form(outer: Any) -> Any:
    """Return names, shapes and dtypes of a tree of tensors, or the type of anything else."""
    if isinstance(outer, Tensor):
        return outer.shape, outer.dtype
    if isinstance(outer, dict):
        return {k: form(v) for k, v in outer.items()}
    return type(outer)


@contextmanager
def new_tensors() -> Iterator[Callable[[], list[Tensor]]]:
    """Yield a function that lists the tensors made inside the block and still alive."""

    def alive() -> list[Tensor]:
        gc.collect()
        # `isinstance` would ask `__class__`, which wakes lazy objects of other libraries.
        return [o for o in gc.get_objects() if issubclass(type(o), Tensor)]

    gc.freeze()  # what lives already is no longer listed by `get_objects`
    try:
        yield alive
    finally:
        gc.unfreeze()
