"""Algebra on dicts of tensors. Keys keep their order; nothing is flattened into one vector.

The functions from `dot` on are meant for use outside a differentiated graph: they run on
`torch._foreach_*`, one launch per operation for all tensors. Where all tensors have a leading axis
of replicates (`replicated`), products and norms are taken of each replicate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from metaopt.engine.derivatives import vjp
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Keys, generator

T = TypeVar("T")
_EPSILON = {torch.float64: 1e-7, torch.float32: 6e-5}
_REPLICATED: ContextVar[int] = ContextVar("replicated", default=0)


@contextmanager
def replicated(leading_axes: int = 1) -> Iterator[None]:
    """Say how many of the first axes of all tensors in the block count replicates.

    With one, `dot` and `norm` are (R,), one number for each replicate, and so may factors be. The
    algorithms above need not know: what is one number of a run becomes one of each replicate, and
    nothing of one reaches another. With two, those of R seeds with B tasks each, they are (R, B).

    Example:
        >>> rows = {"x": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
        >>> with replicated():
        ...     norm(rows), scale(rows, 1 / norm(rows))["x"]
        (tensor([5., 1.]), tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]]))
    """
    before = _REPLICATED.set(int(leading_axes))
    try:
        yield
    finally:
        _REPLICATED.reset(before)


def is_replicated() -> bool:
    """Return whether the first axes of all tensors count replicates here."""
    return _REPLICATED.get() > 0


def like(tree: Tree, tensors: Sequence[Tensor]) -> Tree:
    """Return `tensors` under the names of `tree`, in its order."""
    return dict(zip(tree, tensors, strict=True))


def named_tensors(outer: Any, name: str) -> Tree:
    """Return the outer variable, a dict of floating-point tensors.

    Args:
        outer: the outer variable.
        name: who needs it, for the message.

    Raises:
        TypeError: it is anything else.
    """
    try:
        return check_named(outer, "init_outer")
    except TypeError as error:
        raise TypeError(
            f"{name} needs an outer variable of named floating-point tensors: {error} Return such "
            f"tensors, or use estimator=score with optimizer=search, random or schedule."
        ) from error


def check_named(named: Any, source: str) -> Tree:
    """Return a dict of floating-point tensors, at least one; raise a `TypeError` for the rest.

    Args:
        named: what should be one.
        source: what returned it, for the message.
    """
    legal = "a dict of named floating-point tensors, at least one"
    if not isinstance(named, dict) or not named:
        shown = "an empty dict" if named == {} else f"{type(named).__name__}"
        raise TypeError(f"{source} must return {legal}; got {shown}.")
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            complex_ = isinstance(value, Tensor) and value.is_complex()
            instead = " Train torch.view_as_real of it." if complex_ else ""
            raise TypeError(f"{source} must return {legal}; got {name!r} of {kind}.{instead}")
    return named


def map_tensors(function: Callable[[Tensor], Tensor], state: T) -> T:
    """Apply `function` to every tensor of a nested state (dicts, lists, tuples, named tuples)."""
    result: T = _map(function, state)
    return result


def _map(function: Callable[[Tensor], Tensor], node: Any) -> Any:
    if isinstance(node, Tensor):
        return function(node)
    if isinstance(node, dict):
        return {k: _map(function, v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        parts = [_map(function, v) for v in node]
        # A named tuple takes its fields one by one; torch's return types do not.
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    return node


_KINDS: dict[str, type] = {}
_TAGS: dict[type, str] = {}
_TAG = "__tag__"


class UnknownStateError(ValueError):
    """A checkpoint holds a state whose class is not imported yet."""


def tagged(tag: str) -> Callable[[type[T]], type[T]]:
    """Register a named tuple under a short name that checkpoints know it by.

    The name stays when the class moves, and reading a checkpoint imports nothing that it names.
    """

    def register(kind: type[T]) -> type[T]:
        # By name: a module that is loaded again makes its classes again.
        if _KINDS.get(tag, kind).__qualname__ != kind.__qualname__:
            raise ValueError(f"the tag {tag!r} belongs to {_KINDS[tag].__qualname__}.")
        _KINDS[tag], _TAGS[kind] = kind, tag
        return kind

    return register


def pack(state: Any) -> Any:
    """Return a state with named tuples as dicts under their tags; memory is shared.

    Raises:
        TypeError: a named tuple without a tag.
    """
    if isinstance(state, dict):
        return {k: pack(v) for k, v in state.items()}
    if hasattr(state, "_fields"):
        if type(state) not in _TAGS:
            raise TypeError(
                f"a checkpoint cannot hold {type(state).__name__} without a name for it; put "
                f'@metaopt.engine.tree.tagged("a name") above the class.'
            )
        return {_TAG: _TAGS[type(state)], **{k: pack(v) for k, v in state._asdict().items()}}
    return type(state)(map(pack, state)) if isinstance(state, (list, tuple)) else state


def unpack(state: Any) -> Any:
    """Return what `pack` was given.

    Raises:
        UnknownStateError: a tag that no class has.
    """
    if isinstance(state, dict):
        fields = {k: unpack(v) for k, v in state.items() if k != _TAG}
        if _TAG not in state:
            return fields
        if state[_TAG] not in _KINDS:
            raise UnknownStateError(
                f"the checkpoint holds a state called {state[_TAG]!r}, and no class is registered "
                f"under this name; import the problem that it was written by first."
            )
        return _KINDS[state[_TAG]](**fields)
    if isinstance(state, (list, tuple)) and not hasattr(state, "_fields"):
        return type(state)(map(unpack, state))
    return state


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested state, in order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from tensors(value)


def clone(state: T) -> T:
    """Return a copy that shares no memory and no graph with `state`."""
    return map_tensors(lambda t: t.detach().clone(), state)


def detach(state: T) -> T:
    """Return the same values off the graph; memory is shared."""
    return map_tensors(Tensor.detach, state)


def leaves(tree: Tree) -> Tree:
    """Return the same values as new leaves of a graph; floating tensors require a gradient."""
    return {k: leaf(v) for k, v in tree.items()}


def leaf(tensor: Tensor) -> Tensor:
    """Return the same value as a new leaf of a graph; a floating tensor requires a gradient."""
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def total(value: Tensor) -> Tensor:
    """Return the sum over replicates, whose derivative in each is that of its own value."""
    return value.sum() if value.ndim else value


def gradient(value: Tensor, *trees: Tree) -> list[Tree]:
    """Return the derivatives of a value in trees of leaves; zeros where nothing connects them."""
    if not value.requires_grad:  # torch would raise
        return [zeros_like(tree) for tree in trees]
    inputs = [t for tree in trees for t in tree.values()]
    grads = iter(vjp([total(value)], inputs))
    return [{k: next(grads) for k in tree} for tree in trees]


def numbered(state: Any) -> Tree:
    """Return the tensors of a nested state as a tree, named by their number."""
    return {str(i): t for i, t in enumerate(tensors(state))}


def slopes(output: Tensor | Sequence[Tensor], inputs: Tree) -> dict[str, Tensor | None]:
    """Return the derivatives of a scalar, or of a sum of them, by name.

    `None` stands where no derivative leads from an input to the output, which is another thing than
    one that is zero. The graph is kept.
    """
    outputs = [output] if isinstance(output, Tensor) else output
    ends = [t for t in outputs if t.requires_grad]
    leaves = {k: t for k, t in inputs.items() if t.requires_grad}
    by_name: dict[str, Tensor | None] = dict.fromkeys(inputs)
    if ends and leaves:
        tensors = list(leaves.values())
        grads = torch.autograd.grad(ends, tensors, retain_graph=True, allow_unused=True)
        by_name |= zip(leaves, grads, strict=True)
    return by_name


def reached(output: Tensor | Sequence[Tensor], inputs: Tree) -> set[str]:
    """Return the names of the inputs that a derivative of a scalar leads to."""
    return {name for name, slope in slopes(output, inputs).items() if slope is not None}


def zeros_like(tree: Tree) -> Tree:
    """Return zeros of the same shapes."""
    return {k: torch.zeros_like(v) for k, v in tree.items()}


def dot(a: Tree, b: Tree) -> Tensor:
    """Return the sum over all entries of a * b (differentiable): a scalar, or (R,)."""
    return _whole(torch.stack([sums(a[k] * b[k]) for k in a]).sum(0))


def norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm over all entries: a scalar, or (R,)."""
    if not tree:
        return torch.zeros(())
    norms = _norms(list(tree.values()))
    if len(norms) == 1:
        return _whole(norms[0])
    return _whole(torch.linalg.vector_norm(torch.stack(norms), dim=0))


def relative_norm(a: Tree, b: Tree) -> Tensor:
    """Return |a| / |b|: a scalar, or (R,); both have the same keys."""
    norms = torch.stack(_norms([*a.values(), *b.values()])).unflatten(0, (2, -1))
    above, below = _whole(torch.linalg.vector_norm(norms, dim=1)).unbind()
    ratio: Tensor = above / below.clamp_min(1e-30)
    return ratio


def _whole(value: Tensor) -> Tensor:
    """Return an ordinary tensor: of a `DTensor`, `float` and `bool` would read the local part."""
    if type(value) is Tensor or not hasattr(value, "full_tensor"):
        return value
    whole: Tensor = value.full_tensor()
    return whole


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each tensor: a scalar, or (R,)."""
    if _REPLICATED.get():
        return [torch.linalg.vector_norm(_by_replicate(t), dim=-1) for t in tensors]
    norms: list[Tensor] = list(torch._foreach_norm(tensors))
    return norms


def _by_replicate(tensor: Tensor) -> Tensor:
    """Return the entries of each replicate as one axis, (R, n)."""
    axes = _REPLICATED.get()
    return tensor.reshape(*tensor.shape[:axes], -1)


def sums(tensor: Tensor) -> Tensor:
    """Return the sum of all entries: a scalar, or (R,)."""
    return _by_replicate(tensor).sum(-1) if _REPLICATED.get() else tensor.sum()


def means(tensor: Tensor) -> Tensor:
    """Return the mean of all entries: a scalar, or (R,)."""
    return _by_replicate(tensor).mean(-1) if _REPLICATED.get() else tensor.mean()


def shape(tensor: Tensor) -> torch.Size:
    """Return the shape of a tensor, or what it is in each replicate."""
    return tensor.shape[_REPLICATED.get() :]


def where(mask: Tensor, a: Tree, b: Tree) -> Tree:
    """Return `a` where a mask, a scalar or (R,), is set and `b` elsewhere."""
    return {k: torch.where(across(mask, t), t, b[k]) for k, t in a.items()}


def across(factor: Tensor, tensor: Tensor) -> Tensor:
    """Return a factor, a scalar or (R,), in a shape that broadcasts over a tensor's entries."""
    if not factor.ndim:
        return factor
    # Unlike a scalar, a tensor with axes would change the dtype of a product.
    factor = factor.to(tensor.dtype) if factor.is_floating_point() else factor
    return factor.reshape(factor.shape + (1,) * (tensor.ndim - factor.ndim))


def radius(
    params: Tree,
    direction: Tree,
    epsilon: float | None = None,
    *computed: torch.dtype | None,
) -> Tensor:
    """Return e = epsilon |params| / |direction| for a central difference, 1 for a norm of 0.

    Args:
        params: where the difference is taken.
        direction: along what.
        epsilon: `None` for 1e-7 in float64, 6e-5 in float32, and 1e-3 where float32 parameters
            are computed with in half precision; 3e-3 for parameters of half precision. Of several
            precisions the coarsest counts.
        computed: what else rounds: what is computed in (autocast), and the precision of what the
            difference is taken of; `None` for the parameters' own.
    """
    sizes = norm(params), norm(direction)
    size, length = (torch.where(s > 0, s, torch.ones_like(s)) for s in sizes)
    if epsilon is None:
        # Not by the norm's dtype, which is the finest of them.
        own = [_EPSILON.get(t.dtype, 3e-3) for t in params.values()]
        epsilon = max(own + [_EPSILON.get(dtype, 1e-3) for dtype in computed if dtype])
    return epsilon * size / length


def scale(tree: Tree, factor: float | Tensor) -> Tree:
    """Return factor * tree."""
    if isinstance(factor, Tensor) and factor.ndim:
        return {k: t * across(factor, t) for k, t in tree.items()}
    return like(tree, torch._foreach_mul(list(tree.values()), factor))


def add(a: Tree, b: Tree, factor: float | Tensor = 1.0) -> Tree:
    """Return a + factor * b; `b` may hold a subset of the keys, in any order."""
    # `alpha` takes numbers only, and reading a tensor's number would wait for the device.
    if isinstance(factor, Tensor):
        b, factor = scale(b, factor), 1.0
    other = [b[k] if k in b else torch.zeros_like(v) for k, v in a.items()]
    return like(a, torch._foreach_add(list(a.values()), other, alpha=factor))


def by_replicate(functions: Sequence[Callable[[Tree], Tree]], tree: Tree) -> Tree:
    """Return what a function of each replicate makes of its own part of a tree."""
    with replicated(False):
        made = [f({k: t[i] for k, t in tree.items()}) for i, f in enumerate(functions)]
    return {k: torch.stack([m[k] for m in made]) for k in tree}


def add_(a: Tree, b: Tree, factor: float | Tensor) -> None:
    """Add factor * b to a in place; both have the same keys."""
    if isinstance(factor, Tensor):
        b, factor = scale(b, factor), 1.0
    torch._foreach_add_(list(a.values()), [b[k] for k in a], alpha=factor)


def noise(tree: Tree, key: int) -> Tree:
    """Return standard normal draws of a key; those of a replicate are drawn under its own."""
    if isinstance(key, Keys):
        draws = [
            random_like({k: v[i] for k, v in tree.items()}, generator(each))
            for i, each in enumerate(key.each)
        ]
        return {k: torch.stack([draw[k] for draw in draws]) for k in tree}
    return random_like(tree, generator(key))


def random_like(tree: Tree, generator: torch.Generator) -> Tree:
    """Return standard normal draws of the same shapes, on the devices of `tree`."""
    # Drawn on the generator's device and moved: the same numbers whatever the tree is on.
    return {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device)
        for k, v in tree.items()
    }
