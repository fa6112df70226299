"""Rematerialised blocks of a module: layers that keep their inputs alone, see `remat`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaopt.engine.functional import places
from metaopt.engine.remat import applies, changes_argument, on_graph, rematerialize
from metaopt.engine.remat_caches import Collector, is_cache
from metaopt.engine.remat_graph import hidden

M = TypeVar("M", bound=nn.Module)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def remat_blocks(module: M, pattern: str) -> M:
    """Let the blocks of a module keep their inputs alone; return the module.

    The backward pass computes a block again, and so does the derivative of a gradient, so that no
    graph larger than one block's is alive; see `remat` for what is exact and what it costs. Names
    of parameters stay. A block gets the parameters and buffers that its module holds in the call,
    so that `torch.func.functional_call` works; what it writes in buffers, such as BatchNorm's
    statistics, is written once. A block inside another is computed again with that one, too.

    Args:
        module: the user's or a library's, such as a transformers model; it is changed in place.
        pattern: a regular expression that is searched for in the names of submodules:
            `layers\\.\\d+$` for the layers of most models of transformers.

    Raises:
        ValueError: no submodule has such a name, or the pattern is none; and from a call, where a
            block reads a tensor on the graph that is neither an argument nor its own, changes an
            argument, such as a cache, or does not repeat itself.

    Example:
        >>> import torch
        >>> from metaopt import remat_blocks
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> list(remat_blocks(model, r"[01]$").state_dict())[:2]
        ['0.weight', '0.bias']
    """
    try:
        search = re.compile(pattern).search
    except (re.error, TypeError) as error:
        raise ValueError(
            f"the pattern of rematerialised blocks must be a regular expression, such as "
            f"layers\\.\\d+$; got {pattern!r} ({error})."
        ) from error
    parts = {name: part for name, part in module.named_modules() if name}
    # A container is not called itself.
    blocks = {k: v for k, v in parts.items() if not isinstance(v, _CONTAINERS) and search(k)}
    if not blocks:
        raise ValueError(_no_match(module, pattern, parts))
    for name, block in blocks.items():
        if not isinstance(vars(block).get("forward"), _Forward):
            block.forward = _Forward(block, f"block {name!r} of {type(module).__name__}")
    return module


def _no_match(module: nn.Module, pattern: str, parts: dict[str, nn.Module]) -> str:
    """Return the message for a pattern that no block has, with names like it."""
    words = re.sub(r"\\d[+*]?", "0", pattern).replace("\\", "").strip("^$")
    # One of each kind: layers.0 stands for layers.1; whole names, and what they end in.
    kinds: dict[str, str] = {}
    for name in (k for k, v in parts.items() if not isinstance(v, _CONTAINERS)):
        kind = re.sub(r"\d+", "0", name)
        for end in (kind, kind.partition(".")[2], kind.rpartition(".")[2]):
            kinds.setdefault(end, name)
    inside = [v for k, v in kinds.items() if k.startswith(f"{words}.")]
    alike = [kinds[k] for k in get_close_matches(words, kinds, n=3, cutoff=0.6)]
    repeated = [v for k, v in kinds.items() if k.endswith(".0")]
    near = list(dict.fromkeys([*inside[:2], *alike, *repeated, *kinds.values()]))[:4]
    return (
        f"no block of {type(module).__name__} has a name that matches the pattern '{pattern}' of "
        f"rematerialised blocks (remat); its blocks are named {', '.join(near) or 'none'}, for "
        f"instance."
    )


class _Forward:
    """The forward function of a block, rematerialised where gradients are on.

    In place of the module's method, so that the block's own hooks run once.
    """

    def __init__(self, block: nn.Module, name: str) -> None:
        self.block, self.name, self.forward = block, name, block.forward
        self._compared: set[bool] = set()  # in training mode, in evaluation mode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _Call(self, args, kwargs) if applies() else None
        if call is None or not on_graph(call.tensors):
            return self.forward(*args, **kwargs)
        compare = self.block.training not in self._compared
        self._compared.add(self.block.training)
        (output, added), changed = rematerialize(call.run, call.tensors, self.name, compare)
        call.write(changed, added)
        return output


class _Call:
    """One call of a block, as a function of its tensors.

    Attributes:
        tensors: of the arguments, then parameters and buffers; a tied one is there once.
    """

    def __init__(self, forward: _Forward, args: Any, kwargs: Any) -> None:
        self.name, self.forward = forward.name, forward.forward
        leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.given = [i for i, t in enumerate(leaves) if isinstance(t, Tensor)]
        self.rest = [None if isinstance(t, Tensor) else t for t in leaves]
        self.tensors: list[Tensor] = [leaves[i] for i in self.given]
        parts = list(forward.block.modules())
        # A loss may put its module in evaluation mode before the backward pass of another.
        self.modes = [(vars(part), part.training) for part in parts]
        stores = {id(part._buffers) for part in parts}
        self.places: list[tuple[dict[str, Any], str, int]] = []
        self.buffers: set[int] = set()
        numbers: dict[int, int] = {}
        for store, key, _, tensor in places(forward.block):
            number = numbers.setdefault(id(tensor), len(self.tensors))
            if number == len(self.tensors):
                self.tensors.append(tensor)
            self.places.append((store, key, number))
            if id(store) in stores:
                self.buffers.add(number)
        self.replaced: set[int] = set()
        self.counted: set[int] = set()
        self.caches = [i for i, leaf in enumerate(self.rest) if is_cache(leaf)]
        self.collectors: list[Collector] | None = None

    def run(self, *tensors: Tensor) -> tuple[Any, dict[int, Tensor]]:
        """Return what the block returns and adds to caches, and its buffers' new values."""
        leaves, again = list(self.rest), self.collectors is not None
        collectors = [Collector(self.rest[i], self.name, again) for i in self.caches]
        for i, value in zip((*self.caches, *self.given), (*collectors, *tensors), strict=False):
            leaves[i] = value
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        objects = [_held(leaf) for leaf in self.rest]
        with hidden():
            # The block changes copies of its buffers.
            copies = {i: tensors[i].clone() for i in self.buffers}
            versions = {i: t._version for i, t in copies.items()}
        with self._module_as_it_was(tensors, copies):
            output = self.forward(*args, **kwargs)
            after = {i: store[key] for store, key, i in self.places if i in copies}
        self._refuse_changed(leaves, objects, args, kwargs)
        with hidden():
            self.replaced = {i for i, t in after.items() if t is not copies[i]}
            self.counted = {i for i, t in copies.items() if t._version != versions[i]}
            # Batch norm changes its statistics, and counts no change.
            silent = {i for i, t in copies.items() if t.dim() == 1 and t.is_floating_point()}
        changed = sorted(self.replaced | self.counted | silent)
        added = [collector.added for collector in collectors]
        if not again:
            self.collectors = collectors
        return (output, added), {i: after[i] for i in changed}

    @contextmanager
    def _module_as_it_was(
        self, tensors: Sequence[Tensor], copies: Mapping[int, Tensor]
    ) -> Iterator[None]:
        """Let the block hold these tensors, in the modes of the call; then what it holds now."""
        held = [store[key] for store, key, _ in self.places]
        modes = [attributes["training"] for attributes, _ in self.modes]
        try:
            for store, key, number in self.places:
                store[key] = copies.get(number, tensors[number])
            for attributes, training in self.modes:
                attributes["training"] = training
            yield
        finally:
            for (store, key, _), tensor in zip(self.places, held, strict=True):
                store[key] = tensor
            for (attributes, _), training in zip(self.modes, modes, strict=True):
                attributes["training"] = training

    def write(self, changed: Mapping[int, Tensor], added: Sequence[Any]) -> None:
        """Give buffers their new values, and caches what is added, as the block would have done."""
        with hidden():
            for i in changed.keys() - self.replaced:
                buffer = self.tensors[i]
                (buffer if i in self.counted else buffer.data).copy_(changed[i])
        for store, key, i in self.places:
            if i in self.replaced:
                store[key] = changed[i]
        for collector, updates in zip(self.collectors or (), added, strict=True):
            collector.fill(updates)
        # What they hold is of the graph that was dropped.
        self.collectors = []

    def _refuse_changed(
        self, leaves: Sequence[Any], objects: Sequence[set[int]], args: Any, kwargs: Any
    ) -> None:
        """Raise a `ValueError` if the block has changed a list, a dict or an object given to it."""
        now, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.spec or any(a is not b for a, b in zip(now, leaves, strict=True)):
            raise ValueError(changes_argument(self.name, "a list or dict among its arguments"))
        for leaf, before in zip(self.rest, objects, strict=True):
            if _held(leaf) != before:
                what = f"an argument, {type(leaf).__name__},"
                raise ValueError(changes_argument(self.name, what))


def _held(value: Any, depth: int = 4) -> set[int]:
    """Return which tensors an object holds in its attributes, and in lists and dicts of them."""
    if isinstance(value, Tensor):
        return {id(value)}
    if isinstance(value, nn.Module) or depth == 0:
        return set()
    if isinstance(value, dict):
        parts: Any = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values() if not isinstance(value, type) else ()
    return set().union(*(_held(part, depth - 1) for part in parts))
