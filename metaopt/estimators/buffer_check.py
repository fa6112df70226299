"""What is refused of the buffers that a problem's module writes and a loss reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.buffers import RunningStatistics
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import eager
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator


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
