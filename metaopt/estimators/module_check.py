"""What is refused of the modules that a problem calls: their properties, tried once before a run.

Nothing here knows a module by its class. A training step is evaluated and differentiated once:

- the loss is a function of its arguments, so that two evaluations agree;
- the reverse pass reads the tensors that the forward pass read (`torch.utils.checkpoint` under
  `functional_call` recomputes a layer with the module's own weights);
- the module writes nothing that depends on theta in buffers that a loss then reads, off the graph.

Cost, once per run: two evaluations and one gradient of g; two more evaluations where there are
buffers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.engine import tree
from metaopt.engine.buffers import RunningStatistics
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import eager
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator, replay

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far two evaluations may be apart where sums are not taken in one order; else 1e-2."""


def check_run(loop: Any) -> None:
    """Raise what `check_training` does, at the first theta; a black box is accepted."""
    if isinstance(loop, InnerLoop):
        with replay(0):
            outer = loop.problem.init_outer(generator(0))
            check_training(loop, outer, tree.detach(loop.initial(outer, 0)))


def check_training(loop: InnerLoop, outer: Tree, inner: GradientState) -> None:
    """Raise a `ValueError` if a gradient step on the problem's modules would be wrong.

    Args:
        loop: the inner level.
        outer, inner: where a step is taken; left as they are.
    """
    problem, draw = type(loop.problem).__name__, loop.draw(inner, 0, 0)
    batch = loop.batch(outer, inner.at(inner.params), draw)
    # In phi as well: an outer network may be what recomputes its layers.
    phi, theta = tree.leaves(outer), tree.leaves(inner.params)
    reads = _ParameterReads()
    try:
        with eager(), reads, warnings.catch_warnings():
            warnings.filterwarnings("error", "None of the inputs have requires_grad")
            loss = loop.inner_value(phi, inner.at(theta), draw, batch)
            if not loss.requires_grad:
                return
            reads.backward = True
            leaves = [*theta.values(), *phi.values()]
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    except (RuntimeError, UserWarning) as error:
        if "heckpoint" in str(error) or "None of the inputs" in str(error):
            raise ValueError(_checkpointed(problem, "with use_reentrant=True")) from error
        raise
    if reads.other:
        raise ValueError(_checkpointed(problem, "and reads the module's own weights"))
    for name, slope in zip(theta, slopes, strict=False):
        if slope is not None and slope.layout is not torch.strided:
            raise ValueError(
                f"the gradient of {problem}'s parameter {name!r} is sparse, and estimators need "
                f"dense ones. Make the embedding with sparse=False; its values are the same."
            )
    with torch.no_grad():
        again = loop.inner_value(outer, inner.at(inner.params), draw, batch)
    if not torch.allclose(
        loss, again, rtol=_ROUNDING.get(loss.dtype, 1e-2), atol=0, equal_nan=True
    ):
        values = f"{float(loss.detach()):.6g} and {float(again):.6g}"
        raise ValueError(
            f"inner_loss of {problem} gives {values} for the same "
            f"arguments and batch: it draws random numbers from a generator of its own, or keeps a "
            f"hidden state. Draw from torch's global generator, which is seeded by step, or from "
            f"draw.generator in inner_batch; keep a state in init_state and update_state."
        )


def _checkpointed(problem: str, how: str) -> str:
    return (
        f"inner_loss of {problem} recomputes layers in its backward pass {how} "
        f"(torch.utils.checkpoint): under functional_call their gradients would be those of other "
        f"weights, or missing. Take the checkpoint() out of the module; where memory is short, "
        f"estimator.segments=auto of unroll recomputes inner steps instead."
    )


class _ParameterReads(TorchDispatchMode):
    """Which memory is read in the forward pass, and parameters of modules read only after it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backward, self.other = False, False
        self._forward: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is imported (2 s) to keep it out of this method

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        read = [t for t in tree.tensors((args, kwargs)) if t.layout is torch.strided]
        if self.backward:
            own = [t for t in read if isinstance(t, nn.Parameter)]
            self.other |= any(t.data_ptr() not in self._forward for t in own)
        else:
            self._forward.update(t.data_ptr() for t in read)
        return func(*args, **(kwargs or {}))


def check_buffers(loop: InnerLoop, outer: Tree, inner: GradientState) -> None:
    """Raise a `ValueError` if a loss reads buffers that g computes from theta off the graph.

    Args:
        loop: the inner level.
        outer, inner: where a step is taken; left as they are.
    """
    if not any(t.is_floating_point() for t in inner.buffers.values()):
        return
    draw = loop.draw(inner, 0, 0)
    batch = loop.batch(outer, inner.at(inner.params), draw)
    written = []
    direction = tree.random_like(inner.params, generator(0))
    radius = tree.radius(inner.params, direction, 0.01)
    for params in (inner.params, tree.add(inner.params, direction, radius)):
        at = inner.at(tree.leaves(params))
        with eager(), RunningStatistics():
            loop.inner_value(outer, at, draw, batch)
        written.append(at.buffers)
    off_graph = {
        name for name, first in written[0].items()
        if not first.requires_grad and not torch.equal(first, written[1][name])
    }  # fmt: skip
    losses: dict[str, Callable[[GradientState], Tensor]] = {
        "inner_loss": lambda at: loop.inner_value(outer, at, draw, batch),
        "outer_loss": lambda at: loop.outer_value(outer, at, loop.outer_draw(inner, 0)),
    }
    # In value: what reads a buffer may do so under no_grad, as the power iteration does.
    first, other = (tree.detach(buffers) for buffers in written)
    for name, loss in losses.items() if off_graph else ():
        for buffer in off_graph:
            values = []
            for buffers in (first, {**first, buffer: other[buffer]}):
                with torch.no_grad(), eager():
                    values.append(loss(inner._replace(buffers=tree.clone(buffers))))
            if not torch.equal(*values):
                raise ValueError(
                    f"{name} of {type(loop.problem).__name__} depends on the buffer {buffer!r}, "
                    f"which the module computes from theta off the graph (spectral_norm in "
                    f"training mode does): the hypergradient would miss that path. Call the module "
                    f"in evaluation mode (module.eval()) in both losses."
                )
