"""The adjoint of an inner state from that of a later one.

An adjoint is the derivative of F with respect to an inner state, as a list in the order of
`InnerLoop.differentiated`: parameters, the problem's own state, buffers, moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.estimators.held_fixed import outer_value

Adjoint = list[Tensor]


def at_end(
    loop: InnerLoop, phi: Tree, end: GradientState, key: int
) -> tuple[Tensor, list[Tensor], Adjoint]:
    """Return F, its direct derivative with respect to phi, and the adjoint of the last state."""
    end = loop.leaves(end)
    loss = outer_value(loop, "Unroll", phi, end, loop.outer_draw(end, key))
    direct, adjoint = pull_back([tree.total(loss)], None, phi, loop.differentiated(end))
    return loss.detach(), direct, adjoint


def through_steps(
    loop: InnerLoop, phi: Tree, start: GradientState, key: int, steps: range, adjoint: Adjoint
) -> tuple[list[Tensor], Adjoint]:
    """Return what steps add to dF/dphi, and the adjoint of the state before them, `start`."""
    if len(steps) == 1:
        return through_step(loop, phi, start, key, steps[0], adjoint)
    start, end = graph(loop, phi, start, key, steps)
    return pull_back(loop.differentiated(end), adjoint, phi, loop.differentiated(start))


def through_step(
    loop: InnerLoop, phi: Tree, start: GradientState, key: int, step: int, adjoint: Adjoint
) -> tuple[list[Tensor], Adjoint]:
    """Return the same for one step, by one product with second derivatives of g alone.

    The step is theta', m' = U(theta, m, dg/dtheta). The adjoint is pulled back through U (clipping,
    decay, moments, rates made of phi) and the update of the problem's own state, at detached
    leaves. The part b of it that arrives at dg/dtheta makes the product
    d/d(phi, theta) <dg/dtheta, b>.

    Cost: one gradient and one product.
    """
    start = loop.leaves(start)
    after = start.at(start.params)  # g writes in copies of the buffers
    loss = loop.inner_value(phi, after, loop.draw(start, key, step))
    params = list(start.params.values())
    slope = vjp([tree.total(loss)], params, create_graph=True)

    mean = tree.leaves(distributed.mean(tree.like(start.params, slope)))
    cut = loop.leaves(tree.detach(after))
    end = loop.stepped(phi, loop.stepped_params(phi, cut, mean), loss)
    inputs = [*mean.values(), *loop.differentiated(cut)]
    direct, pulled = pull_back(loop.differentiated(end), adjoint, phi, inputs)
    arriving = distributed.mean(tree.like(mean, pulled[: len(mean)]))
    del cut, end, inputs  # the graph of U

    # Of what `after` holds, g has written the buffers; the rest is `start` itself: the product is
    # added to its adjoint.
    through, adjoint = pull_back(
        [*slope, *loop.differentiated(after)], [*arriving.values(), *pulled[len(mean) :]],
        phi, loop.differentiated(start),
    )  # fmt: skip
    return list(torch._foreach_add(direct, through)), adjoint


def through_start(loop: InnerLoop, phi: Tree, key: int, adjoint: Adjoint) -> list[Tensor]:
    """Return what a theta_0 made of phi adds to dF/dphi, from its adjoint."""
    return pull_back(loop.differentiated(loop.initial(phi, key)), adjoint, phi, [])[0]


def graph(
    loop: InnerLoop, phi: Tree, start: GradientState, key: int, steps: range
) -> tuple[GradientState, GradientState]:
    """Return leaves at the start of steps and the state at their end, on the graph."""
    start = end = loop.leaves(start)
    for k in loop.progress.track(steps, "inner step"):
        end = loop.step(phi, end, loop.draw(end, key, k))
    return start, end


def pull_back(
    outputs: Sequence[Tensor], adjoint: Sequence[Tensor] | None, phi: Tree,
    inputs: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Return the adjoint of `outputs` with respect to phi and to `inputs`."""
    linked = [i for i, t in enumerate(outputs) if t.requires_grad]
    if not linked:
        return [torch.zeros_like(t) for t in phi.values()], [torch.zeros_like(t) for t in inputs]
    arriving = None if adjoint is None else [adjoint[i] for i in linked]
    grads = vjp([outputs[i] for i in linked], [*phi.values(), *inputs], arriving)
    return list(grads[: len(phi)]), list(grads[len(phi) :])
