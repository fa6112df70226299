"""Problems whose losses are means over a fixed partition of the data, so that a batch has a name.

Methods that reduce the variance of stochastic directions (SABA, SRBA) remember what a batch said
when it was last drawn, or evaluate one batch at two points.
"""

from __future__ import annotations

from abc import abstractmethod

from metaopt.engine.gradient_problem import Batch, GradientProblem
from metaopt.engine.hooks import COMMON, FINITE, GRADIENT
from metaopt.engine.random import Draw, fold


class Finite(GradientProblem):
    """g = (1/n) sum_i g(.; inner_batch_at(i)) and F = (1/m) sum_j F(.; outer_batch_at(j)).

    The data are cut once into n = `inner_batches` and m = `outer_batches` batches, blocks of equal
    size. An inner step draws one of the first, an evaluation of F one of the second: `inner_batch`
    and `outer_batch` are given.

    Example:
        class Penalty(Finite):
            inner_batches, outer_batches = 20, 5

            def __init__(self, seed=0):
                self.epoch_seed = seed  # epochs; left out, batches are drawn with replacement

            def inner_batch_at(self, index):
                return self.x[32 * index : 32 * (index + 1)]

            def outer_batch_at(self, index):
                return self.validation[32 * index : 32 * (index + 1)]

    Attributes:
        inner_batches, outer_batches: number of blocks, >= 1.
        epoch_seed: seed of the orders in which epochs go through the blocks, without replacement;
            `None` draws each batch with replacement, by the run's seed. The run's seed does not
            reach these orders by itself: set `self.epoch_seed = seed` in `__init__`. Where inner
            runs start from scratch, each has orders of its own.
    """

    inner_batches: int
    outer_batches: int
    epoch_seed: int | None = None
    hooks = COMMON | GRADIENT | FINITE

    @abstractmethod
    def inner_batch_at(self, index: int) -> Batch:
        """Return block `index` of the data of g, in range(inner_batches)."""

    @abstractmethod
    def outer_batch_at(self, index: int) -> Batch:
        """Return block `index` of the data of F, in range(outer_batches)."""

    def block(self, draw: Draw) -> int:
        """Return which block a draw takes, of the inner or of the outer data."""
        outer, seed = draw.stream == "outer batch", self.epoch_seed
        # Steps count through the outer steps of a warm start; elsewhere each run counts from 0.
        if seed is not None and not self.warm_start and draw.inner_step is not None:
            seed = fold(seed, draw.run_key)
        return draw.block(self.outer_batches if outer else self.inner_batches, seed)

    def inner_batch(self, draw: Draw) -> Batch:
        """Return the block that an inner step takes."""
        return self.inner_batch_at(self.block(draw))

    def outer_batch(self, draw: Draw) -> Batch:
        """Return the block that F is taken on."""
        return self.outer_batch_at(self.block(draw))
