"""A module called with other tensors in the places of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[dict[str, Any], str, str, Tensor]
"""A dict of a module's parameters or buffers, a key in it, the name in the module, the tensor."""


def functional_call(
    module: nn.Module,
    tensors: dict[str, Tensor],
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """Return module(*args, **kwargs) with `tensors` by name in place of the module's own.

    The same as `torch.func.functional_call`, for a fraction of its cost, which in a small network
    exceeds that of the forward pass. As there, tied tensors stay tied, whichever of their names is
    given; what is not given is the module's own; what the module assigns to a buffer replaces the
    entry of `tensors`; the module gets its own tensors back, after an exception as well; and no
    other thread may use the module meanwhile.

    Example:
        >>> module = torch.nn.Linear(2, 1)
        >>> weights = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
        >>> functional_call(module, weights, torch.ones(3, 2)).flatten()
        tensor([2., 2., 2.])

    Args:
        module: what is called.
        tensors: parameters and buffers by the module's names.
        args: its argument, or a tuple of them.
        kwargs: its keyword arguments.

    Raises:
        ValueError: two values for names of one tied tensor.
    """
    # Located at each call, since a module may change between two: 2 us for three layers.
    held = places(module)
    values = _values(module, tensors, held)
    if values is None:
        # What is refused, a script inside the module, and tensors that are attributes without being
        # parameters or buffers.
        return torch.func.functional_call(module, tensors, args, kwargs)
    if not isinstance(args, tuple):
        args = (args,)
    held = [place for place in held if id(place[3]) in values]
    try:
        for store, key, _, own in held:
            store[key] = values[id(own)]
        return module(*args, **(kwargs or {}))
    finally:
        # All are read before one is put back: a layer of two names has one store in two places.
        after = [store.get(key) for store, key, _, _ in held]
        for store, key, _, own in held:
            store[key] = own
        for (_, _, name, _), value in zip(held, after, strict=True):
            if name in tensors and value is not tensors[name]:
                tensors[name] = value  # type: ignore[assignment]  # a buffer may become None


def _values(
    module: nn.Module, tensors: dict[str, Tensor], held: list[Place]
) -> dict[int, Tensor] | None:
    """Return what replaces each of a module's tensors, by the identity of the module's own.

    `None` where torch's own call is needed: for a name that the module does not have, for two names
    of one tied tensor that get different values, and for a module with a script in it.
    """
    if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
        return None
    values: dict[int, Tensor] = {}
    replaced = 0
    for store, _, name, own in held:
        if not isinstance(store, dict):
            return None
        if name in tensors:
            value = tensors[name]
            if values.setdefault(id(own), value) is not value or not isinstance(value, Tensor):
                return None
            replaced += 1
    return values if replaced == len(tensors) else None


def places(module: nn.Module) -> list[Place]:
    """Return where a module holds its parameters and buffers, a tied one in several places."""
    held: list[Place] = []
    _locate(module, "", held)
    return held


def _locate(module: nn.Module, prefix: str, held: list[Place]) -> None:
    for store in (module._parameters, module._buffers):
        for key, tensor in store.items():
            if tensor is not None:
                held.append((store, key, prefix + key, tensor))
    for key, child in module._modules.items():
        if child is not None:
            _locate(child, f"{prefix}{key}.", held)
