"""Reverse mode through the inner run, with the whole graph or segment by segment."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.inner_run import Result
from metaopt.estimators.task_average import TaskAverage


class Unroll(TaskAverage):
    """Exact derivative of F(phi, u_K(... u_1(theta_0))) through the actual inner optimizer.

    dF/dphi + sum_k (dF/dtheta_K) (du_K/dtheta ... du_{k+1}/dtheta) du_k/dphi,
    for SGD, momentum, Adam and AdamW with schedules and clipping, their rates and other
    hyperparameters included where they are made of phi. A theta_0 that copies
    phi (`warm_start=False`) is differentiated through as well, so that this is MAML; a warm start
    is held fixed. Scale: carries the inner learning rates.

    With S segments, the state at the start of each is kept and the graph of one segment at a time
    is rebuilt: memory falls from K steps to about S states and K / S steps. All S agree to
    round-off.

    Args:
        inner_steps: number K of inner steps, >= 1.
        truncation: differentiate through the last `truncation` steps only, or `None` for all
            (Shaban et al., AISTATS 2019); fewer than all are refused for a theta_0 made from phi
            and for learned rates of earlier steps alone.
        segments: number S of segments, or "auto": the fewest that fit `memory_budget`,
            about sqrt(K) when that is `None`.
        memory_budget: bytes for graphs and stored states; used with `segments="auto"`.
        tasks: number B of tasks whose hypergradients are averaged (a meta-batch), >= 1; more than
            one needs `warm_start=False`.

    Cost: 3 gradients per step with one segment, 4 with more.

    References: Maclaurin et al., ICML 2015; Franceschi et al., ICML 2017 (reverse mode); Finn et
    al., MAML, ICML 2017; Chen et al., arXiv 1604.06174, 2016 (segments).

    Example:
        >>> from metaopt import Unroll, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"unroll": Unroll(inner_steps=50)})
        >>> row.error < 0.01
        True
    """

    carries_state = True
    second_derivatives = "reverse"
    carries_optimizer = True
    misses_buffers_of = ()

    def __init__(
        self,
        inner_steps: int = 1,
        truncation: int | None = None,
        segments: int | Literal["auto"] = 1,
        memory_budget: float | None = None,
        tasks: int = 1,
    ) -> None:
        super().__init__(inner_steps, tasks)
        self.truncation = inner_steps if truncation is None else truncation
        self.segments, self.memory_budget = segments, memory_budget
        check_ranges(self, "1 <= truncation <= inner_steps", "memory_budget > 0 or null")
        if segments != "auto" and not (isinstance(segments, int) and segments >= 1):
            raise ValueError(f'Unroll needs segments >= 1 or "auto"; got {segments!r}.')
        if memory_budget is not None and segments != "auto":
            raise ValueError('Unroll reads memory_budget only with segments="auto".')
        self.carries_start = self.truncation == inner_steps

    @property
    def carried_steps(self) -> int:
        """How many of the last inner steps are differentiated."""
        return self.truncation

    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the derivative through the last of them."""
        head = self.inner_steps - self.truncation
        inner = loop.run(outer, inner, key, head)
        phi = tree.leaves(outer)
        with twice_differentiable():
            steps = range(head, self.inner_steps)
            count = self._count(loop, phi, inner, key)
            # A theta_0 that does not come from a warm start may be made of phi: its adjoint counts.
            forks = inner.step == 0 and head == 0 and not loop.problem.warm_start
            inner, value, grads, adjoint = _reverse(loop, phi, inner, key, _split(steps, count))
            if forks:
                grads = _through_start(loop, phi, key, grads, adjoint)
        grad = tree.like(phi, grads)
        gradients = self.inner_steps + 1 + (self.truncation if count > 1 else 0)
        return self.result(inner, value, grad, gradients=gradients, hvps=self.truncation)

    def _count(self, loop: InnerLoop, phi: Tree, inner: GradientState, key: int) -> int:
        if self.segments != "auto":
            return min(self.segments, self.truncation)
        if self.memory_budget is None:
            return math.isqrt(self.truncation)
        step, state = _step_bytes(loop, phi, inner, key), _state_bytes(loop, inner)
        peaks = [
            s * state + math.ceil(self.truncation / s) * step for s in range(1, self.truncation + 1)
        ]
        fits = [s for s, peak in enumerate(peaks, 1) if peak <= self.memory_budget]
        if not fits:
            raise ValueError(
                f"Unroll needs at least {min(peaks) / 2**20:.1f} MiB for {self.truncation} steps; "
                f"memory_budget is {self.memory_budget / 2**20:.1f} MiB. Raise it, or lower "
                f"truncation or the batch size."
            )
        return fits[0]


def _split(steps: range, count: int) -> list[range]:
    """Return `steps` cut into `count` runs whose lengths differ by at most one."""
    cuts = [steps.start + len(steps) * i // count for i in range(count + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


def _reverse(
    loop: InnerLoop, phi: Tree, inner: GradientState, key: int, segments: list[range]
) -> tuple[GradientState, Tensor, list[Tensor], list[Tensor]]:
    """Return the last state, F, dF/dphi over all segments, and the adjoint of the first state."""
    # Checkpointing (Chen et al.): all segments but the last run without keeping their graph; it is
    # built again, one at a time, on the way back.
    starts = [tree.detach(inner)]
    for segment in segments[:-1]:
        for k in segment:
            inner = tree.detach(loop.step(phi, loop.leaves(inner), loop.draw(inner, key, k)))
        starts.append(inner)

    start, end = _graph(loop, phi, starts.pop(), key, segments[-1])
    loss = loop.outer_value(phi, end, loop.outer_draw(end, key))
    last, value = tree.detach(end), loss.detach()
    grads, adjoint = _pull_back([tree.total(loss)], None, phi, loop.differentiated(start))
    del loss, start, end  # the last references to the graph, before the next one is built
    for segment in reversed(segments[:-1]):
        start, end = _graph(loop, phi, starts.pop(), key, segment)
        ends, inputs = loop.differentiated(end), loop.differentiated(start)
        earlier, adjoint = _pull_back(ends, adjoint, phi, inputs)
        del start, end, ends, inputs
        grads = list(torch._foreach_add(grads, earlier))
    return last, value, grads, adjoint


def _through_start(
    loop: InnerLoop, phi: Tree, key: int, grads: list[Tensor], adjoint: list[Tensor]
) -> list[Tensor]:
    """Return dF/dphi plus the adjoint of theta_0 pulled back to the phi it was made of."""
    start = loop.differentiated(loop.initial(phi, key))
    linked = [i for i, t in enumerate(start) if t.requires_grad]
    if not linked:
        return grads
    through = torch.autograd.grad(
        [start[i] for i in linked], list(phi.values()), [adjoint[i] for i in linked],
        materialize_grads=True,
    )  # fmt: skip
    return list(torch._foreach_add(grads, through))


def _graph(
    loop: InnerLoop, phi: Tree, start: GradientState, key: int, segment: range
) -> tuple[GradientState, GradientState]:
    """Return leaves at the start of a segment and the state at its end, on the graph."""
    start = end = loop.leaves(start)
    for k in segment:
        end = loop.step(phi, end, loop.draw(end, key, k))
    return start, end


def _pull_back(
    outputs: list[Tensor], adjoint: list[Tensor] | None, phi: Tree, start: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the adjoint of `outputs` with respect to phi and to the segment's start."""
    inputs = [*phi.values(), *start]
    linked = [i for i, t in enumerate(outputs) if t.requires_grad]
    grads = torch.autograd.grad(
        [outputs[i] for i in linked], inputs,
        None if adjoint is None else [adjoint[i] for i in linked],
        materialize_grads=True,
    )  # fmt: skip
    return list(grads[: len(phi)]), list(grads[len(phi) :])


def _state_bytes(loop: InnerLoop, state: GradientState) -> int:
    buffers = (t for k, t in state.buffers.items() if k not in loop.carried_buffers)
    tensors = [*loop.differentiated(state), *buffers]
    return sum(t.numel() * t.element_size() for t in tensors)


def _step_bytes(loop: InnerLoop, phi: Tree, inner: GradientState, key: int) -> int:
    """Return the bytes that the graph of one inner step keeps alive, each storage once."""
    sizes: dict[int, int] = {}  # by address: several views may share a storage

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        end = loop.step(phi, loop.leaves(inner), loop.draw(inner, key, 0))
        for t in loop.differentiated(end):
            count(t)
    return sum(sizes.values())
