"""Rematerialisation: a function keeps its arguments alone and is computed again for derivatives.

`torch.utils.checkpoint` does so for a gradient, and keeps the whole graph of one that is
differentiated again. Here the backward pass V(c, x) = J_f(x)^T c is rematerialised as well: it
keeps (c, x), and its own backward pass computes f and V again, and so on in every order. No graph
larger than that of one call of f is ever alive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from metaopt.engine.kernels import current_function_modes, function_modes
from metaopt.engine.random import generator_states, restored_generators, set_generator_states
from metaopt.engine.remat_graph import (
    attached,
    changes_entry,
    guarded,
    hidden,
    operations,
    unobserved,
)
from metaopt.engine.rounding import rounding

T = TypeVar("T")
Run = Callable[..., tuple[Any, dict[int, Tensor]]]
"""Tensors -> what is returned, and new values of those tensors that are changed, by number."""

_compared: WeakSet[Any] = WeakSet()


def remat(f: Callable[..., T], *tensors: Tensor) -> T:
    """Return f(*tensors), of which the backward pass keeps `tensors` alone.

    Derivatives in reverse mode, of every order, are those of f. What f draws from torch's global
    generators is drawn again in a recomputation, and autocast is as it was. Under
    `torch.no_grad()`, in forward mode and inside the transforms of `torch.func`, f is called as it
    is, which is right and saves nothing.

    Args:
        f: a function of tensors that returns tensors, alone or in tuples, lists and dicts. What
            else it reads must be off the graph.
        tensors: its arguments; derivatives are taken in those that require a gradient.

    Cost: a gradient evaluates f once more; a product with a second derivative takes four
    evaluations and five to six backward passes of f in place of one and three.

    Raises:
        ValueError: f reads a tensor on the graph that is no argument, changes an argument in
            place, or returns something else when it is called again.

    Reference: Chen et al., arXiv 1604.06174, 2016 (for the gradient).

    Example:
        >>> import torch
        >>> from metaopt import remat
        >>> x = torch.ones(3, requires_grad=True)
        >>> y = remat(lambda x: x.sin().exp(), x)
        >>> (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        >>> torch.autograd.grad(slope.sum(), x)[0].shape
        torch.Size([3])
    """
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"remat takes tensors after the function; got {type(tensor).__name__}. Bind what "
                f"is no tensor, as remat(lambda x: f(x, 3), x) does."
            )
    if not (applies() and on_graph(tensors)):
        return f(*tensors)
    code = getattr(f, "__code__", None)
    first = code is None or code not in _compared
    if code is not None:
        _compared.add(code)
    name = f"the function {getattr(f, '__name__', type(f).__name__)!r}"
    output: T = rematerialize(lambda *x: (f(*x), {}), tensors, name, first)[0]
    return output


def applies() -> bool:
    """Return whether a graph is built in this place, and by reverse mode alone."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0  # tangents are kept until the level closes all the same
    )


def on_graph(tensors: Sequence[Tensor]) -> bool:
    """Return whether one of the tensors requires a gradient."""
    with hidden():
        return any(t.requires_grad for t in tensors)


def rematerialize(
    run: Run, tensors: Sequence[Tensor], name: str, compare: bool
) -> tuple[Any, dict[int, Tensor]]:
    """Return run(*tensors), on the graph of the tensors alone.

    Args:
        run: called here, and again for derivatives.
        tensors: its arguments, one of them on the graph.
        name: of the function, for messages.
        compare: whether its first recomputation is compared with this evaluation.
    """
    with hidden():
        state = _State(tensors)
        versions = [t._version for t in tensors]
        entries, entry = guarded(tensors, name)
    try:
        # On a graph that ends at the entries and is dropped at once: what it reaches beyond them
        # would be lost.
        with unobserved():
            result = run(*entries)
    except RuntimeError as error:
        if changes_entry(error):
            raise ValueError(changes_argument(name)) from error
        raise
    with hidden():
        if [t._version for t in tensors] != versions:
            raise ValueError(changes_argument(name))
        leaves, spec = pytree.tree_flatten(result)
        arguments = {id(e): t for e, t in zip(entries, tensors, strict=True)}
        computed = [
            i for i, t in enumerate(leaves) if isinstance(t, Tensor) and id(t) not in arguments
        ]
        leaves = [arguments.get(id(t), t) for t in leaves]  # returned as it is: no output of `run`
        outputs = [leaves[i] for i in computed]
        again = _Again(run, computed, state, name, operations(outputs, entry, name))
        # The values before the call of what it changes, which the caller is about to overwrite.
        inputs = [t.clone() if i in result[1] else t for i, t in enumerate(tensors)]
        results = attached(again, outputs, inputs, [not t.requires_grad for t in outputs])
        if compare:
            again.expect(results)
        for i, output in zip(computed, results, strict=True):
            leaves[i] = output
        returned: tuple[Any, dict[int, Tensor]] = pytree.tree_unflatten(leaves, spec)
        return returned


def changes_argument(name: str, what: str = "an argument") -> str:
    """Return the message for a function that is not pure."""
    return (
        f"{name} is rematerialised and changes {what} in place, which a recomputation would change "
        f"again. Work on a copy (x = x + y in place of x += y), or leave it out of remat."
    )


class _State:
    """Generators, autocast and function modes, as they are when this is made.

    The modes are copies: one that counts calls continues from here in every recomputation.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.generators = generator_states()
        self.modes = [copy.copy(mode) for mode in current_function_modes()]
        kinds = {"cpu", *(t.device.type for t in tensors)}
        self.autocast = {
            kind: (torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in kinds
            if torch.amp.is_autocast_available(kind)
        }

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Bring them back inside the block."""
        with ExitStack() as stack:
            stack.enter_context(restored_generators())
            set_generator_states(self.generators)
            for kind, (dtype, enabled) in self.autocast.items():
                # Without the cache, which would keep the casts, and graphs, of leaves made here.
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            stack.enter_context(function_modes([copy.copy(mode) for mode in self.modes]))
            yield


@dataclass(eq=False)
class _Again:
    """The same evaluation again: its tensors to what it computes of them.

    Args:
        run: what is evaluated.
        computed: which of its results.
        state: what it was evaluated under.
        name: for messages.
        operations: names of the nodes of its graph.
    """

    run: Run
    computed: list[int]
    state: _State
    name: str
    operations: frozenset[str]
    expected: list[tuple[Tensor, int]] = field(default_factory=list)

    def expect(self, outputs: Sequence[Tensor]) -> None:
        """Compare the next evaluation with these outputs."""
        # Off their graph, which leads back here.
        self.expected = [(t.detach(), t._version) for t in outputs]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with self.state.restored():
            leaves = pytree.tree_leaves(self.run(*tensors))
        outputs = [leaves[i] for i in self.computed]
        if self.expected:
            pairs = zip(outputs, self.expected, strict=True)
            # What the caller has changed in place since then cannot be compared.
            same = all(_close(a, b) for a, (b, version) in pairs if b._version == version)
            self.expected = []
            if not same:
                raise ValueError(
                    f"{self.name} is rematerialised and returns something else when it is computed "
                    f"again: it draws random numbers from a generator of its own, or keeps a "
                    f"hidden state. Draw from torch's global generator, or leave it out of remat."
                )
        return outputs


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = rounding(b.dtype)
    return torch.allclose(a.detach(), b, rtol=tolerance, atol=tolerance, equal_nan=True)
