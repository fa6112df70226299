"""Forward mode through the inner run: constant memory, for a handful of outer numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, generator
from metaopt.estimators.held_fixed import outer_value
from metaopt.estimators.inner_run import Result
from metaopt.estimators.task_average import TaskAverage
from metaopt.estimators.trial import try_outer_step

MOST_OUTERS = 64


class Forward(TaskAverage):
    """dF/dphi + Z_K^T dF/dtheta with Z_{k+1} = (du/dtheta) Z_k + du/dphi.

    Z holds the derivative of parameters and moments with respect to each outer number; u is the
    actual inner optimizer; Z_0 = 0 but where theta_0 is made from phi (`warm_start=False`). Equal
    to `Unroll` to round-off, with memory that does not grow with K. Scale: carries the inner
    learning rates.

    A product with du is two reverse passes: the first is linear in its cotangent, and its
    derivative is the product. Torch's dual numbers would need one pass, but `torch.no_grad()` does
    not stop them, so a loss with a constant part would get another derivative than `Unroll` gives.

    Args:
        inner_steps: number K of inner steps, >= 1.
        tasks: number B of tasks whose hypergradients are averaged, >= 1; see `Unroll`.

    Cost: about 10 + 2 n gradients per step for n outer numbers; memory for n + 1 inner states and
    the graph of one step.

    Raises:
        ValueError: from `check`, when the outer variable has more than 64 numbers.

    Reference: Franceschi et al., ICML 2017.

    Example:
        >>> from metaopt import Forward, Unroll, check
        >>> from metaopt.problems.examples import Quadratic
        >>> estimators = {"forward": Forward(inner_steps=10), "unroll": Unroll(inner_steps=10)}
        >>> rows = check(Quadratic(), estimators)
        >>> abs(rows[0].error - rows[1].error) < 1e-6
        True
    """

    carries_start = True
    carries_state = True
    second_derivatives = "reverse"
    carries_optimizer = True
    misses_buffers_of = ()

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        super().check(loop)
        _basis(loop.problem.init_outer(generator(0)))
        # nll_loss wants cotangents in rows, however its own input lies in memory.
        try_outer_step(
            self, loop,
            "Use estimator=unroll; where torch wants a tensor to be contiguous, take losses of "
            "rows, as cross_entropy(outputs.flatten(0, -2), labels.flatten()) does",
        )  # fmt: skip

    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the derivative through all of them."""
        basis = _basis(outer)
        tangents = _start_tangents(loop, outer, inner, key, basis)
        with twice_differentiable():
            for k in loop.progress.track(range(self.inner_steps), "inner step"):
                draw = loop.draw(inner, key, k)
                inner, tangents = _push(loop, outer, inner, draw, basis, tangents)
        # F depends on all but the moments, which are the last in a tangent.
        phi, end = tree.leaves(outer), loop.leaves(inner._replace(optimizer={}))
        loss = outer_value(loop, "Forward", phi, end, loop.outer_draw(inner, key))
        ends = {str(i): t for i, t in enumerate(loop.differentiated(end))}
        v, direct = tree.gradient(loss, ends, phi)
        through = torch.stack([_dot(v.values(), z) for z in tangents], -1)
        parts = through.split([tree.shape(p).numel() for p in outer.values()], -1)
        shaped = [r.reshape(p.shape).to(p) for r, p in zip(parts, outer.values(), strict=True)]
        return self.result(
            inner, loss.detach(), tree.add(direct, tree.like(outer, shaped)),
            gradients=self.inner_steps + 1, hvps=self.inner_steps * (len(basis) + 1),
        )  # fmt: skip


def _basis(outer: Tree) -> list[list[Tensor]]:
    """Return one unit tangent for each number of the outer variable, or of each replicate's."""
    count = sum(tree.shape(p).numel() for p in outer.values())
    if count > MOST_OUTERS:
        raise ValueError(
            f"Forward costs two gradients per outer number and inner step, and takes at most "
            f"{MOST_OUTERS} numbers; this outer variable has {count}. Use estimator=unroll."
        )
    basis = []
    for name, p in outer.items():
        shape = tree.shape(p)
        for i in range(shape.numel()):
            unit = tree.zeros_like(outer)
            flat = p.new_zeros(shape.numel())
            flat[i] = 1.0
            unit[name] = flat.view(shape).expand_as(p)  # no view of zeros like a transposed p
            basis.append(list(unit.values()))
    return basis


def _start_tangents(
    loop: InnerLoop, outer: Tree, inner: GradientState, key: int, basis: list[list[Tensor]]
) -> list[list[Tensor]]:
    """Return Z_0 for each unit of phi: zero for a warm start and for moments."""
    if inner.step or loop.problem.warm_start:
        return [[torch.zeros_like(t) for t in loop.differentiated(inner)] for _ in basis]
    phi = tree.leaves(outer)
    return _push_forward(loop.differentiated(loop.initial(phi, key)), list(phi.values()), basis)


def _push_forward(
    outputs: list[Tensor], inputs: list[Tensor], tangents: list[list[Tensor]]
) -> list[list[Tensor]]:
    """Return (d outputs / d inputs) tangent for each tangent, by two reverse passes."""
    linked = [t for t in outputs if t.requires_grad]
    if not linked:
        return [[torch.zeros_like(t) for t in outputs] for _ in tangents]
    # J^T c is linear in c, so its derivative in c along a tangent z is J z; c = 0 serves as well as
    # any other. The graph of J^T c is built once for all tangents.
    cotangents = [torch.zeros_like(t, requires_grad=True) for t in linked]
    pulled = vjp(linked, inputs, cotangents, create_graph=True)
    # An input that no output depends on has a zero without a graph: it contributes nothing.
    varying = [i for i, t in enumerate(pulled) if t.requires_grad]
    pushed = []
    for tangent in tangents:
        along = [tangent[i] for i in varying]
        rest = iter(vjp([pulled[i] for i in varying], cotangents, along, retain_graph=True))
        pushed.append([next(rest) if t.requires_grad else torch.zeros_like(t) for t in outputs])
    return pushed


def _push(
    loop: InnerLoop, outer: Tree, inner: GradientState, draw: Draw,
    basis: list[list[Tensor]], tangents: list[list[Tensor]],
) -> tuple[GradientState, list[list[Tensor]]]:  # fmt: skip
    """Return the state one step on, off the graph, and its tangents."""
    phi, start = tree.leaves(outer), loop.leaves(inner)
    end = loop.step(phi, start, draw)
    inputs = [*phi.values(), *loop.differentiated(start)]
    whole = [[*unit, *tangent] for unit, tangent in zip(basis, tangents, strict=True)]
    pushed = _push_forward(loop.differentiated(end), inputs, whole)
    return tree.detach(end), pushed


def _dot(v: Iterable[Tensor], tangent: list[Tensor]) -> Tensor:
    """Return <v, tangent>; what the tangent has beyond v is left out."""
    return torch.stack([tree.sums(a * b) for a, b in zip(v, tangent, strict=False)]).sum(0)
