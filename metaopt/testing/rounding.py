"""Whether a problem's own precision is enough for its hypergradient."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.protocols import Estimator, Tree
from metaopt.engine.random import fold
from metaopt.estimators.inner_run import require_gradients
from metaopt.testing.precision import cast_like, float64_loop, short
from metaopt.testing.verdict import Verdict, calming, in_order, level_of

STEPS = (1, 4, 16)
"""Inner steps after which precisions are compared, beside those of the run."""


@dataclass(frozen=True)
class Rounding:
    """A hypergradient g in the problem's own precision against e in float64.

    Args:
        inner_steps: K.
        cosine: <g, e> / |g| |e|; NaN where g is not finite.
        norm_ratio: |g| / |e|.
    """

    inner_steps: int
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Precision:
    """What rounding does to the hypergradient as the number of inner steps grows.

    Args:
        dtype: the coarsest precision that the problem computes in.
        rows: by increasing K; the last one is that of the run, unless it was skipped.
        skipped: numbers of inner steps for which there was no time.
        cures: what helps, in the order in which to try it.
    """

    dtype: str
    rows: tuple[Rounding, ...]
    skipped: tuple[int, ...]
    cures: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """What the numbers mean, and what to do."""
        if not self.rows:
            return Verdict("warning", f"there was no time to compare {self.dtype} with float64.")
        row = self.rows[-1]
        if self.skipped:
            row = min(self.rows, key=lambda r: -2.0 if math.isnan(r.cosine) else r.cosine)
        level, so_far = level_of(row.cosine), f" up to K = {row.inner_steps}" * bool(self.skipped)
        if level == "fine":
            return Verdict(level, f"{self.dtype} is precise enough for this hypergradient{so_far}.")
        return Verdict(level, (
            f"in {self.dtype} the hypergradient {_described(row.cosine)} at K = {row.inner_steps}. "
            f"{in_order(self.cures)}"
        ))  # fmt: skip


def check_precision(
    problem: GradientProblem,
    make: Callable[[int], Estimator],
    steps: Sequence[int] = STEPS,
    *,
    seconds: float | None = None,
    key: int = 0,
) -> Precision:
    """Compare the hypergradient of the first outer step with itself in float64.

    Both start at the same theta_0 and see the same batches and masks. float64 is that of
    `metaopt.testing.in_float64`; autocast leaves its tensors alone.

        precision = check_precision(MyProblem(), Unroll, [1, 4, 16, 200])
        print(precision.rows[-1].cosine, precision.verdict)

    Args:
        problem: any `GradientProblem` that runs in float64.
        make: the estimator for a number of inner steps, such as `Unroll`.
        steps: numbers K of inner steps, each >= 1.
        seconds: most time to spend, or `None`; the largest K are skipped where it is short.
        key: the seed of the run.

    Cost: two hypergradients for each K.

    Raises:
        TypeError: the problem has no gradients.
        ValueError: the problem does not run in float64, or computes in it already; the estimator
            refuses the problem; its hypergradient is zero.
    """
    require_gradients(loop_of(problem), "check_precision", through_decisions=False)
    own, ordered, at = InnerLoop(problem), sorted(set(steps)), fold(key, 0)
    exact, reason = float64_loop(problem)
    if reason:
        raise ValueError(f"no float64 to compare with: {reason}")
    make(ordered[0]).check(own)  # which also finds the half precision that g computes in
    outer = own.initial_outer(fold(key, "outer"))
    inner = own.start(outer, None, at)
    dtype = _coarsest(own, [*outer.values(), *inner.params.values()])
    if dtype == torch.float64:
        raise ValueError(f"{type(problem).__name__} computes in float64 already.")
    phi = cast_like(outer, exact.initial_outer(0))
    start = cast_like(inner, exact.start(phi, None, at))
    rows: list[Rounding] = []
    began, per_step = time.monotonic(), 0.0
    for count in ordered:
        spent = time.monotonic() - began
        if seconds is not None and spent + per_step * count > seconds:
            break
        g = _grad(make(count), own, outer, tree.clone(inner), at)
        e = _grad(make(count), exact, phi, tree.clone(start), at)
        rows.append(_compared(count, g, e))
        per_step = (time.monotonic() - began - spent) / count
    return Precision(
        short(dtype), tuple(rows), tuple(ordered[len(rows) :]), _cures(own, outer, dtype)
    )


def _described(cosine: float) -> str:
    if math.isnan(cosine):
        return "is not finite"
    return f"has the cosine {cosine:.2f} with the one in float64"


def _coarsest(loop: InnerLoop, tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """Return the coarsest floating-point dtype of the tensors and of the computation."""
    dtypes = [*loop.half_precision, *(t.dtype for t in tensors if t.is_floating_point())]
    if loop.problem.compute_dtype is not None:
        dtypes.append(loop.problem.compute_dtype)
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _grad(
    estimator: Estimator, loop: InnerLoop, outer: Tree, inner: GradientState, key: int
) -> Tree:
    _, feedback = estimator(loop, outer, inner, key)
    if feedback.grad is None:
        raise ValueError(f"{type(estimator).__name__} gives no gradient.")
    return {k: v.double() for k, v in feedback.grad.items()}


def _compared(steps: int, grad: Tree, exact: Tree) -> Rounding:
    size, true = float(tree.norm(grad)), float(tree.norm(exact))
    if not (true > 0 and math.isfinite(true)):
        what = "zero" if true == 0 else "not finite"
        raise ValueError(f"the hypergradient is {what} in float64 after {steps} inner steps.")
    return Rounding(steps, float(tree.dot(grad, exact)) / (size * true or math.nan), size / true)


def _cures(loop: InnerLoop, outer: Tree, dtype: torch.dtype) -> tuple[str, ...]:
    finer = "float32" if torch.finfo(dtype).bits < 32 else "float64"
    return f"{finer} in place of {short(dtype)}", *calming(loop.optimizer(outer, 0))
