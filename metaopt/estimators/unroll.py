"""Reverse mode through the inner run: exact, in the memory of all its steps or of a few states."""

from __future__ import annotations

import math
from typing import Literal

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.estimators.inner_run import Result
from metaopt.estimators.reverse.adjoints import through_start
from metaopt.estimators.reverse.passes import ReversePass
from metaopt.estimators.reverse.resuming import opened
from metaopt.estimators.reverse.schedules import Revolve, Schedule, Segments, forward_steps
from metaopt.estimators.reverse.sizes import SHORT, fitting, sizes
from metaopt.estimators.task_average import TaskAverage


class Unroll(TaskAverage):
    """Exact derivative of F(phi, u_K(... u_1(theta_0))) through the actual inner optimizer.

    dF/dphi + sum_k (dF/dtheta_K) (du_K/dtheta ... du_{k+1}/dtheta) du_k/dphi,
    for SGD, momentum, Adam and AdamW with schedules and clipping, their rates and other
    hyperparameters included where they are made of phi. A theta_0 that copies
    phi (`warm_start=False`) is differentiated through as well, so that this is MAML; a warm start
    is held fixed. Scale: carries the inner learning rates.

    The schedule says which inner states are kept; what lies between them is run again on the way
    back. All schedules agree to round-off; with M the bytes of a state and A those of one step's
    graph:

    - `whole`: the graph of all steps, K A + M; 3 gradients per step.
    - `segments`: S states and the graph of one segment at a time, S M + K A / S; 4 gradients per
      step.
    - `revolve`: at most `snapshots` states and the graph of one step, however long the run; with 20
      states 6 gradients per step at K = 2,000, 7 at K = 10,000.
    - `auto`: the first of these that fits `memory_budget`, with states on disk where fewer than
      three fit. Without a budget, the whole graph of up to four steps or 256 MiB, else segments.

    Args:
        inner_steps: number K of inner steps, >= 1.
        truncation: differentiate through the last `truncation` steps only, or `None` for all
            (Shaban et al., AISTATS 2019); fewer than all are refused for a theta_0 made from phi
            and for learned rates of earlier steps alone.
        schedule: which states are kept.
        segments: number S of segments, for `segments` or `auto`; "auto": sqrt(K A / M), at which
            the peak is least.
        snapshots: number of states that `revolve` keeps, the first one counted, >= 1.
        store: where states are kept; on disk in the folder of the run, or of temporary files.
        journal_every: most steps that a killed run differentiates again, those of one segment at
            least; the journal is in the run's folder. `None`: no journal. The whole graph has none.
        memory_budget: bytes for graphs and kept states, for `auto`, or `None`.
        tasks: number B of tasks whose hypergradients are averaged (a meta-batch), >= 1; more than
            one needs `warm_start=False`.

    Logs `inner/adjoint_growth` for more than four steps: |lambda_0| / |lambda_K|, lambda_k being
    dF/dtheta_k. Where it is large, round-off and every perturbation grow by as much.

    References: Maclaurin et al., ICML 2015; Franceschi et al., ICML 2017 (reverse mode); Finn et
    al., MAML, ICML 2017; Chen et al., arXiv 1604.06174, 2016 (segments); Griewank and Walther, ACM
    TOMS 26, 2000 (revolve).

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
        schedule: Literal["auto", "whole", "segments", "revolve"] = "auto",
        segments: int | Literal["auto"] = "auto",
        snapshots: int = 20,
        store: Literal["memory", "disk"] = "memory",
        journal_every: int | None = 50,
        memory_budget: float | None = None,
        tasks: int = 1,
    ) -> None:
        super().__init__(inner_steps, tasks)
        self.truncation = inner_steps if truncation is None else truncation
        self.schedule, self.segments, self.snapshots = schedule, segments, snapshots
        self.store, self.journal_every, self.memory_budget = store, journal_every, memory_budget
        check_choices(
            self, schedule=("auto", "whole", "segments", "revolve"), store=("memory", "disk")
        )
        check_ranges(
            self, "1 <= truncation <= inner_steps", "snapshots >= 1", "journal_every >= 1 or null",
            "memory_budget > 0 or null",
        )  # fmt: skip
        if segments != "auto" and not (isinstance(segments, int) and segments >= 1):
            raise ValueError(f'Unroll needs segments >= 1 or "auto"; got {segments!r}.')
        if segments != "auto" and schedule not in ("auto", "segments"):
            raise ValueError(
                f"Unroll reads segments={segments} only with schedule=segments or auto; got "
                f"schedule={schedule}."
            )
        if memory_budget is not None and (schedule, segments) != ("auto", "auto"):
            raise ValueError(
                'Unroll reads memory_budget only with schedule="auto" and segments="auto".'
            )
        self.carries_start = self.truncation == inner_steps

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong, or needs more memory than it may."""
        super().check(loop)
        if self.memory_budget is not None:
            self._schedule(loop, range(self.truncation))

    @property
    def carried_steps(self) -> int:
        """How many of the last inner steps are differentiated."""
        return self.truncation

    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the derivative through the last of them."""
        steps = range(self.inner_steps - self.truncation, self.inner_steps)
        # A theta_0 that does not come from a warm start may be made of phi: its adjoint counts.
        forks = inner.step == 0 and steps.start == 0 and not loop.problem.warm_start
        inner = loop.run(outer, inner, key, steps.start)
        phi = tree.leaves(outer)
        with twice_differentiable():
            schedule, disk = self._schedule(loop, steps)
            parts = loop, phi, key, steps, schedule
            with opened(*parts, inner, disk=disk, every=self.journal_every) as resumed:
                store, journal, progress = resumed
                adjoint = forks or self.truncation > SHORT  # whose norm is logged
                end = ReversePass(*parts, store, journal, adjoint)(inner, progress)
            grads = end.grads
            if forks:
                through = through_start(loop, phi, key, end.adjoint)
                grads = list(torch._foreach_add(grads, through))
        rerun = forward_steps(schedule, steps)
        return self.result(
            end.end, end.value, tree.like(phi, grads),
            {"inner/adjoint_growth": end.growth} if self.truncation > SHORT else {},
            gradients=self.inner_steps + 1 + rerun, hvps=self.truncation,
        )  # fmt: skip

    def _schedule(self, loop: InnerLoop, steps: range) -> tuple[Schedule, bool]:
        """Return the schedule, and whether its states are on disk."""
        count, disk = len(steps), self.store == "disk"
        if self.schedule == "revolve":
            return Revolve(self.snapshots), disk
        if self.segments != "auto":
            return Segments(steps, min(self.segments, count)), disk
        short = self.memory_budget is None and count <= SHORT
        if self.schedule == "whole" or (self.schedule == "auto" and short):
            return Segments(steps, 1), disk
        size = sizes(loop)
        # A segment is differentiated at once: longer than that, a kill would lose more.
        entries = 1 if self.journal_every is None else math.ceil(count / self.journal_every)
        segments = max(size.segments(count), entries)
        if self.schedule == "segments":
            return Segments(steps, segments), disk
        return fitting(size, steps, self.memory_budget, segments, self.snapshots, disk)
