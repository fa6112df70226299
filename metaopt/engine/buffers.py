"""The derivative of what a module writes in its buffers: BatchNorm's running statistics.

torch updates them off the graph and reads them as constants. An inner step computes them from
theta, and F in evaluation mode reads them: a path from phi to F of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, generator

if TYPE_CHECKING:
    from metaopt.engine.gradient_problem import GradientState
    from metaopt.engine.inner_loop import InnerLoop


_HELD: ContextVar[bool] = ContextVar("held", default=False)


class RunningStatistics(TorchFunctionMode):
    """Let `batch_norm` and `instance_norm` update and read running statistics on the graph.

    For statistics that require a gradient, which torch's own functions refuse. Outputs and
    statistics of training mode are those of torch to the bit.

    Args:
        update: whether updates are on the graph, or what is read alone.
    """

    def __init__(self, update: bool = True) -> None:
        super().__init__()
        self.update = update

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _NORMS:
            return _NORMS[func](self.update, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def statistics(buffers: Tree, state: Any) -> AbstractContextManager[object]:
    """Return a block for a loss: `RunningStatistics` where a tensor requires a gradient."""
    carried = any(t.requires_grad for t in buffers.values())
    if not carried and not (state and any(t.requires_grad for t in tree.tensors(state))):
        return _NOTHING
    return RunningStatistics(update=carried and not _HELD.get())


_NOTHING = nullcontext()


@contextmanager
def held_fixed() -> Iterator[None]:
    """Say that what requires a gradient of buffers in the block is read at most: see `Held`."""
    before = _HELD.set(True)
    try:
        yield
    finally:
        _HELD.reset(before)


def _batch_norm(
    update: bool, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Return `torch.nn.functional.batch_norm`."""
    affine = weight, bias
    statistics = running_mean, running_var
    return _norm(update, F.batch_norm, input, statistics, affine, training, momentum, eps)


def _instance_norm(
    update: bool, input: Tensor, running_mean: Tensor | None = None,
    running_var: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Return `torch.nn.functional.instance_norm`."""
    statistics, affine = (running_mean, running_var), (weight, bias)
    return _norm(update, F.instance_norm, input, statistics, affine, use_input_stats, momentum, eps)


def _torch_norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `torch.batch_norm` or `torch.instance_norm`, which take the same in another order."""

    def norm(
        update: bool, input: Tensor, weight: Tensor | None, bias: Tensor | None,
        running_mean: Tensor | None, running_var: Tensor | None, training: bool, momentum: float,
        eps: float, cudnn_enabled: bool,
    ) -> Tensor:  # fmt: skip
        statistics, affine = (running_mean, running_var), (weight, bias)
        return _norm(update, function, input, statistics, affine, training, momentum, eps)

    return norm


def _norm(
    update: bool, function: Callable[..., Tensor], input: Tensor,
    statistics: tuple[Tensor | None, Tensor | None], affine: tuple[Tensor | None, Tensor | None],
    training: bool, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Return the input normalized, and its statistics in the running ones, on the graph."""
    running_mean, running_var = statistics
    if running_mean is None or running_var is None:
        return function(input, None, None, *affine, training, momentum, eps)
    if not training and (_varies(running_mean) or _varies(running_var)):
        return _normalized(input, running_mean, running_var, *affine, eps)
    if not (training and update):
        off_graph = running_mean.detach(), running_var.detach()  # on the same memory
        return function(input, *off_graph, *affine, training, momentum, eps)
    values = running_mean.detach().clone(), running_var.detach().clone()
    output = function(input, *values, *affine, True, momentum, eps)
    # Of an instance each, then averaged over the batch; or of the whole batch at once.
    batch = [0] if function is F.batch_norm else []
    var, mean = torch.var_mean(input, [*batch, *range(2, input.dim())])
    for running, new, value in zip((running_mean, running_var), (mean, var), values, strict=True):
        _update(running, new if batch else new.mean(0), momentum, value)
    return output


_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm: _torch_norm(F.batch_norm),
    torch.instance_norm: _torch_norm(F.instance_norm),
}
"""What has running statistics, and what takes its place."""


def _normalized(
    input: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return the input normalized by running statistics, with their derivative."""
    shape = [1, -1, *(1 for _ in range(input.dim() - 2))]
    output = (input - mean.view(shape)) * (var + eps).rsqrt().view(shape)
    if weight is not None:
        output = output * weight.view(shape)
    return (output if bias is None else output + bias.view(shape)).to(input.dtype)


def _varies(tensor: Tensor) -> bool:
    """Return whether a derivative leads to a tensor; inside vmap it does not say so itself."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def _update(running: Tensor, batch: Tensor, momentum: float, value: Tensor) -> None:
    """Give running statistics a value, in place, and the derivative of their moving average."""
    # The module updates them under no_grad as well: only its outputs are constants there.
    with torch.enable_grad():
        average = torch.lerp(running, batch.to(running.dtype), momentum)
        running.copy_(value + (average - average.detach()))


class BufferPath(NamedTuple):
    """A derivative that leads through a buffer.

    Args:
        loss: which loss reads the buffer: inner_loss or outer_loss.
        buffer: its name.
        source: what an inner step computes it from: phi or theta.
        computed: all buffers that a step computes from either.
    """

    loss: str
    buffer: str
    source: str
    computed: frozenset[str]


def buffer_path(
    loop: InnerLoop, outer: Tree, inner: GradientState, sources: Sequence[str] = ("theta", "phi"),
    draws: Sequence[Draw] | None = None, carried: Collection[str] = (),
) -> BufferPath | None:  # fmt: skip
    """Return a path from phi or theta to a loss through a buffer, or `None`.

    Args:
        loop: the inner level.
        outer, inner: where a step is taken; left as they are.
        sources: where a path may start, of theta and phi.
        draws: at which g is evaluated, in the order of a run; the first two steps if `None`.
        carried: names of buffers of which no path is returned.

    Cost: two evaluations of g for each draw and one of F, and what of their derivatives leads to
    buffers.
    """
    if not any(t.is_floating_point() for t in inner.buffers.values()):
        return None
    draws = draws or [loop.draw(inner, 0, 0), loop.draw(inner._replace(step=inner.step + 1), 0, 1)]
    leaves = {"phi": tree.leaves(outer), "theta": tree.leaves(inner.params)}
    phi, after, buffers = tree.detach(outer), inner, dict[str, Tensor]()
    read, to_g = dict[str, Tensor](), None

    def path_to(loss: str, value: Tensor) -> BufferPath | None:
        reached = tree.reached(value, read)
        for name in (k for k in inner.buffers if k in reached and k not in carried):
            for source in sources:
                if tree.reached(buffers[name].sum(), leaves[source]):
                    return BufferPath(loss, name, source, frozenset(read))
        return None

    for draw in draws:
        if read and to_g is None:
            to_g = path_to("inner_loss", loop.inner_value(phi, after.at(after.params), draw))
        if draw.use != "inner":
            continue
        stepped = _stepped(loop, leaves["phi"], inner, leaves["theta"], draw)
        buffers |= {k: t for k, t in stepped.items() if t.requires_grad}
        # Where the step ends, cut off from where it came from.
        read = {k: tree.leaf(t) for k, t in buffers.items()}
        after = inner._replace(buffers={**tree.detach(stepped), **read})
        # A state, such as an average of the statistics, may be what reads them.
        after = after._replace(state=loop.updated_state(phi, after, inner.step + 1))
    if not read:
        return None
    outer_draw = loop.outer_draw(inner, draws[0].run_key)
    return path_to("outer_loss", loop.outer_value(phi, after, outer_draw)) or to_g


def _stepped(loop: InnerLoop, outer: Tree, inner: GradientState, params: Tree, draw: Draw) -> Tree:
    """Return the buffers after an evaluation of g, on the graph of what they are computed from."""
    at = inner.at(params)
    if any(t.is_floating_point() for t in inner.buffers.values()):
        with RunningStatistics():
            loop.inner_value(outer, at, draw)
    return at.buffers


def computed_buffers(loop: InnerLoop, sources: Sequence[str]) -> frozenset[str]:
    """Return the buffers that an inner step computes from the sources, of theta and phi."""
    if not loop.has_buffers:
        return frozenset()
    outer = loop.problem.init_outer(generator(0))
    inner = tree.detach(loop.initial(outer, 0))
    phi = tree.leaves(outer) if "phi" in sources else outer
    params = tree.leaves(inner.params) if "theta" in sources else inner.params
    buffers = _stepped(loop, phi, inner, params, loop.draw(inner, 0, 0))
    return frozenset(k for k, t in buffers.items() if t.requires_grad)


def carried_buffers(loop: InnerLoop) -> frozenset[str]:
    """Return the buffers whose derivative is part of that of a run.

    All that a step computes from phi or theta, where a loss reads one of them; none for BatchNorm
    whose running statistics neither loss reads.
    """
    if not loop.has_buffers:
        return frozenset()
    outer = loop.problem.init_outer(generator(0))
    path = buffer_path(loop, outer, tree.detach(loop.initial(outer, 0)))
    return path.computed if path else frozenset()
