"""How much memory an inner run needs to be differentiated, and which schedule fits a budget."""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from metaopt.engine import distributed, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.random import replay
from metaopt.engine.remat_graph import measured_graphs
from metaopt.engine.storages import Storages
from metaopt.estimators.reverse.adjoints import pull_back
from metaopt.estimators.reverse.schedules import Revolve, Schedule, Segments

SHORT = 4
"""Steps whose whole graph is kept without a measurement."""

FEWEST = 3
"""States below which a run is taken again too often."""

SMALL = 2**28
"""Bytes of a whole graph that no machine with torch on it is short of: 256 MiB."""


class Sizes(NamedTuple):
    """What a reverse pass holds, in bytes.

    Args:
        state: of an inner state, M.
        step: of the graph of one step, A.
        block: of what is held to compute the largest rematerialised block again.
        outer: of the graph of F, and of its gradient.
    """

    state: int
    step: int
    block: int = 0
    outer: int = 0

    def segments(self, steps: int) -> int:
        """Return the number S of segments with the least peak, S M + ceil(K / S) A."""
        return min(max(round(math.sqrt(steps * self.step / self.state)), 1), steps)

    @property
    def product(self) -> int:
        """What a product with second derivatives, or F, needs beside the graph, in bytes."""
        return max(self.step, self.outer) + 2 * self.state + self.block

    def whole(self, steps: int) -> int:
        """Return the peak of a pass with the whole graph."""
        return self.segmented(steps, 1, 1)

    def segmented(self, steps: int, segments: int, states: int) -> int:
        """Return the peak of a pass in segments with a number of states in memory."""
        return states * self.state + math.ceil(steps / segments) * self.step + self.product

    def snapshots(self, budget: float) -> int:
        """Return how many states fit beside the graph of one step."""
        # And one more while the end of the run is found.
        return int((budget - self.step - self.product) / self.state) - 1


def fitting(
    size: Sizes, steps: range, budget: float | None, segments: int, snapshots: int, disk: bool
) -> tuple[Schedule, bool]:
    """Return the fastest schedule that fits a budget, and whether its states are on disk.

    Args:
        size: of the inner run.
        steps: those that are differentiated.
        budget: in bytes, or `None`.
        segments, snapshots: how many to take where that is not up to the budget.
        disk: whether states are to be on disk in any case.

    Raises:
        ValueError: none fits.
    """
    count = len(steps)
    if size.whole(count) <= (SMALL if budget is None else budget):
        return Segments(steps, 1), disk
    in_memory = 0 if disk else segments
    if budget is None or size.segmented(count, segments, in_memory) <= budget:
        return Segments(steps, segments), disk
    if not disk and (fitted := size.snapshots(budget)) >= FEWEST:
        return Revolve(fitted), False
    # The first state is the caller's; another one is read from the disk.
    least = size.step + size.product + 2 * size.state
    if least <= budget:
        return Revolve(snapshots), True
    raise ValueError(
        f"Unroll needs at least {_amount(least)} for {count} steps; memory_budget is "
        f"{_amount(budget)}. Raise it, make batches smaller, or let the blocks of the model "
        f"be computed again (metaopt.remat_blocks)."
    )


def _amount(size: float) -> str:
    """Return a number of bytes in the unit that shows it."""
    if size < 2**10:
        return f"{size:.0f} byte{'s' * (size != 1)}"
    return f"{size / 2**10:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


_MEASURED: WeakKeyDictionary[InnerLoop, Sizes] = WeakKeyDictionary()


def sizes(loop: InnerLoop) -> Sizes:
    """Return the sizes of a loop's first step; measured once, for the price of it and of F."""
    if loop not in _MEASURED:
        # Of the problem alone, so that a resumed run chooses as the whole one did.
        place = loop.outer_step, loop.task_index
        loop.outer_step = loop.task_index = 0
        try:
            # By the kernels of a differentiated step: that of fused attention saves less.
            with replay(0), twice_differentiable():
                _MEASURED[loop] = _measured(loop)
        finally:
            loop.outer_step, loop.task_index = place
    return _MEASURED[loop]


def _measured(loop: InnerLoop) -> Sizes:
    phi = tree.leaves(loop.initial_outer(0))
    inner = loop.leaves(tree.detach(loop.initial(phi, 0)))
    storages, outer = Storages(), Storages()
    with measured_graphs() as blocks:
        with storages.saved():
            end = loop.step(phi, inner, loop.draw(inner, 0, 0))
        ends = loop.differentiated(end)
        for t in ends:
            storages.add(t)
        step = storages.live
        with outer.saved():
            loop.outer_value(phi, end, loop.outer_draw(end, 0))
        if blocks:  # the largest is that of a block's second derivative
            pull_back(ends, ends, phi, loop.differentiated(inner))
    state = {**inner._asdict(), "loss": None}
    held = sum(t.numel() * t.element_size() for t in tree.tensors(state))
    # What goes back through a graph holds about as much again.
    size = Sizes(held, step, 2 * max(blocks, default=0), 2 * outer.peak)
    device = next(iter(phi.values())).device
    # Ranks take one schedule, and the batches of one may be larger.
    most = distributed.largest(torch.tensor(size, dtype=torch.int64, device=device))
    return Sizes(*most.tolist())
