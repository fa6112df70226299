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
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from metaopt.engine.kernels import (
    current_function_modes,
    eager,
    function_modes,
    twice_differentiable,
)
from metaopt.engine.random import generator_states, restored_generators, set_generator_states

T = TypeVar("T")
Run = Callable[..., tuple[Any, dict[int, Tensor]]]
"""Tensors -> what is returned, and new values of those tensors that are changed, by number."""

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far two evaluations may be apart where sums are not taken in one order; else 1e-2."""
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
    code = getattr(f, "__code__", f)
    first = code not in _compared
    if first:
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
    with _hidden():
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
    with _hidden():
        state = _State(tensors)
        versions = [t._version for t in tensors]
        entries, entry = _guarded(tensors, name)
    try:
        # On a graph that ends at the entries and is dropped at once: what it reaches beyond them
        # would be lost.
        with _unobserved():
            result = run(*entries)
    except RuntimeError as error:
        if _Guard.__name__ in str(error):
            raise ValueError(changes_argument(name)) from error
        raise
    with _hidden():
        if [t._version for t in tensors] != versions:
            raise ValueError(changes_argument(name))
        leaves, spec = pytree.tree_flatten(result)
        arguments = {id(e): t for e, t in zip(entries, tensors, strict=True)}
        computed = [
            i for i, t in enumerate(leaves) if isinstance(t, Tensor) and id(t) not in arguments
        ]
        leaves = [arguments.get(id(t), t) for t in leaves]  # returned as it is: no output of `run`
        outputs = [leaves[i] for i in computed]
        again = _Again(run, computed, state, name, _operations(outputs, entry, name))
        # The values before the call of what it changes, which the caller is about to overwrite.
        kept = [t.clone() if i in result[1] else t for i, t in enumerate(tensors)]
        results = _attached(again, outputs, kept, [not t.requires_grad for t in outputs])
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
    tolerance = _ROUNDING.get(b.dtype, 1e-2) if b.is_floating_point() else 0.0
    return torch.allclose(a.detach(), b, rtol=tolerance, atol=tolerance, equal_nan=True)


class _Guard(Function):
    """The entry of a graph that is dropped: its backward pass is reached from a tensor that leaked.

    Several views at once, which torch refuses to change in place.
    """

    @staticmethod
    def forward(ctx: Any, name: str, *tensors: Tensor) -> Any:
        ctx.name = name
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        raise ValueError(
            f"{ctx.name} is rematerialised, and a tensor that it computes is read without being "
            f"returned (from a hook, an attribute, an object of a class of its own). Return it, "
            f"alone or in tuples, lists and dicts, or leave it out of remat."
        )


def _guarded(tensors: Sequence[Tensor], name: str) -> tuple[list[Tensor], Any]:
    """Return aliases of the tensors behind one node, and the node."""
    linked = [i for i, t in enumerate(tensors) if t.requires_grad]
    entries = list(tensors)
    guard: Any = _Guard.apply
    for i, alias in zip(linked, guard(name, *(tensors[i] for i in linked)), strict=True):
        entries[i] = alias
    return entries, entries[linked[0]].grad_fn


def _operations(outputs: Sequence[Tensor], entry: Any, name: str) -> frozenset[str]:
    """Return the names of the nodes between outputs and entry; raise for a leaf on the way."""
    names, visited = set(), {entry}
    nodes: list[Any] = [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            raise ValueError(
                f"{name} is rematerialised and reads a tensor on the graph that is not among its "
                f"arguments, parameters and buffers: its derivative in a tensor of shape "
                f"{tuple(node.variable.shape)} would be lost. Pass it as an argument, detach() it, "
                f"or leave it out of remat."
            )
        names |= {node.name(), *getattr(node, "operations", ())}
        nodes += [parent for parent, _ in node.next_functions]
    return frozenset(names)


class _Remat(Function):
    """Values that were computed already, and the backward pass that computes them again."""

    @staticmethod
    def forward(
        ctx: Any, again: Any, values: Any, constant: Sequence[Tensor], *tensors: Tensor
    ) -> Any:
        ctx.again, ctx.operations = again, getattr(again, "operations", frozenset())
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constant)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        given = [i for i, c in enumerate(cotangents) if c is not None]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        pullback = _Pullback(ctx.again, given, wanted)
        tensors = [*(cotangents[i] for i in given), *ctx.saved_tensors]
        with torch.no_grad():
            grads = pullback(*tensors)
        if torch.is_grad_enabled():
            grads = _attached(pullback, grads, tensors, [False] * len(grads))
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted, grads, strict=True):
            result[3 + i] = grad
        return tuple(result)


@dataclass(eq=False)
class _Pullback:
    """V(c, x) = J_f(x)^T c, to be differentiated itself where gradients are on.

    Args:
        again: f.
        given: which of its outputs have a cotangent.
        wanted: which of its arguments have a derivative; `None` stands for one without a path.
    """

    again: Callable[..., Sequence[Tensor | None]]
    given: list[int]
    wanted: list[int]

    def __call__(self, *tensors: Tensor) -> list[Tensor | None]:
        twice = torch.is_grad_enabled()
        cotangents, inputs = tensors[: len(self.given)], list(tensors[len(self.given) :])
        if not twice:
            inputs = [t.detach() for t in inputs]
            for i in self.wanted:
                inputs[i].requires_grad_()
        kernels = twice_differentiable() if twice else eager()
        with torch.enable_grad(), kernels, _unobserved():
            outputs = self.again(*inputs)
            ends = [(outputs[i], c) for i, c in zip(self.given, cotangents, strict=True)]
            linked = [(y, c) for y, c in ends if y is not None and y.requires_grad]
            wanted = [inputs[i] for i in self.wanted]
            if not linked:
                return [None] * len(wanted)
            ys, cs = zip(*linked, strict=True)
            return list(torch.autograd.grad(ys, wanted, cs, create_graph=twice, allow_unused=True))


def _attached(
    again: Any,
    outputs: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    constant: Sequence[bool],
) -> list[Any]:
    """Return the values of outputs, on the graph of the tensors by `again` unless constant."""
    # In memory of their own, which neither an argument nor another output shares.
    storages = {t.untyped_storage()._cdata for t in tensors}
    values: list[Tensor | None] = []
    for output in outputs:
        if output is None:
            values.append(None)
            continue
        storage = output.untyped_storage()._cdata
        values.append(output.detach().clone() if storage in storages else output.data)
        storages.add(storage)
    off = [value for value, is_constant in zip(values, constant, strict=True) if is_constant]
    apply: Any = _Remat.apply
    return list(apply(again, tuple(values), off, *tensors))


def _hidden() -> Any:
    """Hide the block's calls from modes that record the calls of a loss, or replay them."""
    return torch._C.DisableTorchFunction()


_measurements: ContextVar[list[int] | None] = ContextVar("_measurements", default=None)


@contextmanager
def measured_graphs() -> Iterator[list[int]]:
    """Give the block the bytes of each graph that is built and dropped inside it."""
    sizes: list[int] = []
    token = _measurements.set(sizes)
    try:
        yield sizes
    finally:
        _measurements.reset(token)


@contextmanager
def _unobserved() -> Iterator[None]:
    """Hide a graph that is dropped at once from hooks that count, or move, what a graph saves."""
    measurements = _measurements.get()
    if measurements is None and torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        yield
        return
    saved: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return t.detach()  # an output itself would hold its own graph, and never go

    with saved_tensors_hooks(count, lambda t: t):
        yield
    if measurements is not None:
        measurements.append(sum(saved.values()))
