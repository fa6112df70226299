"""How far each estimator is from the exact hypergradient, on your own problem."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.protocols import Estimator, Feedback, OuterOptimizer, Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.estimators.implicit import Implicit
from metaopt.estimators.inner_run import require_gradients
from metaopt.estimators.solvers import ConjugateGradient
from metaopt.estimators.unroll import Unroll
from metaopt.optimizers.descent import Descent
from metaopt.testing.meter import PeakMemory
from metaopt.testing.precision import in_float64, with_one_batch

SETTLED = 1e-10


@runtime_checkable
class ClosedForm(Protocol):
    """A problem that knows its hypergradient at the inner solution."""

    def hypergradient(self, outer: Tree) -> Tree:
        """Return dF(phi, theta*(phi))/dphi."""
        ...


@dataclass(frozen=True)
class Row:
    """One estimator against the reference r; g is what it returned.

    Args:
        estimator: name given to it.
        warm: whether it was called in the outer steps before this one.
        reference: what r is, in words.
        cosine: <g, r> / |g| |r|; 0 when g is 0.
        error: |g - r| / |r|.
        scaled_error: min over s of |s g - r| / |r|: the error in direction alone.
        closed_error: |g - c| / |c| with the closed form c, or `None` without one.
        seconds: one call, its inner steps included; the least of several.
        peak_bytes: peak of live tensor storage; see `metaopt.testing.meter.PeakMemory`.
        cost: what the estimator says it spent.
        refused: why there are no numbers, or `None`.
    """

    estimator: str
    warm: bool
    reference: str
    cosine: float | None = None
    error: float | None = None
    scaled_error: float | None = None
    closed_error: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    refused: str | None = None


@dataclass(frozen=True)
class _Point:
    """Where estimators are compared, and with what."""

    outer: Tree
    inner: GradientState
    key: int
    exact: Tree
    closed: Tree | None
    reference: str


def check_hypergradient(
    problem: GradientProblem,
    estimators: Mapping[str, Estimator],
    *,
    steps: int = 100,
    reference_steps: int | None = None,
    warm_steps: int = 0,
    optimizer: Callable[[], OuterOptimizer] | None = None,
    exact: GradientProblem | None = None,
    key: int = 0,
) -> list[Row]:
    """Compare estimators with the exact derivative through an inner run, in float64.

    The reference r is dF/dphi through R inner steps from the start, by reverse mode in float64.
    The start is where the inner level gets in at most `steps` steps under the first phi, or where
    its gradient has fallen to 1e-10 of the first; where each run starts from scratch, that start
    itself. At an inner solution r tends to the implicit hypergradient as R grows. Every loss is
    evaluated on one inner and one outer batch, so that differences are the estimators' and not the
    sampling's; dropout masks stay as drawn.

    Estimators run in the problem's own precision, each from the start, with its own inner steps.
    A one-step quantity carries the inner learning rate: compare it by `cosine` and `scaled_error`.

        rows = check_hypergradient(MyProblem(), {"cg": Implicit(), "t1-t2": FiniteDifference()})

    Args:
        problem: any `GradientProblem`.
        estimators: by the name to report; they are copied, and left as they were.
        steps: most inner steps to the start, >= 0.
        reference_steps: R >= 1, or `None` for as many as were taken to the start; needed where
            each inner run starts from scratch.
        warm_steps: outer steps taken before a second row for each estimator that keeps a state;
            0 for cold rows only. phi then follows an accurate solve, the same for all.
        optimizer: makes the outer optimizer of those steps, or `None` for Adam at 0.01.
        exact: the problem in float64, where casting its attributes is not enough.
        key: seed of the batches, masks and first values.

    Raises:
        TypeError: the problem has no gradients.
        ValueError: `steps`, `reference_steps` or `warm_steps` out of range, or the problem does
            not run in float64 (pass `exact`).
    """
    require_gradients(loop_of(problem), "check_hypergradient", through_decisions=False)
    if not problem.warm_start and reference_steps is None:
        raise ValueError(
            f"{type(problem).__name__} starts each inner run from scratch (warm_start=False): pass "
            f"reference_steps=<the inner steps of a run>."
        )
    if steps < 0 or warm_steps < 0 or (reference_steps is not None and reference_steps < 1):
        raise ValueError(
            f"check_hypergradient needs steps >= 0, reference_steps >= 1 and warm_steps >= 0; "
            f"got {steps}, {reference_steps}, {warm_steps}."
        )
    problem = with_one_batch(problem, key)
    twin = with_one_batch(exact, key) if exact else in_float64(problem)
    try:
        points = _trajectory(
            InnerLoop(twin), steps, reference_steps, warm_steps, optimizer or _adam, key
        )
    except RuntimeError as error:
        raise ValueError(
            f"{type(problem).__name__} does not run in float64 after casting its attributes: "
            f"{error}. Pass exact=<the problem built in float64>."
        ) from error
    rows = []
    for name, estimator in estimators.items():
        rows += _compare(InnerLoop(problem), name, estimator, points)
    return rows


def _adam() -> OuterOptimizer:
    return Descent(functools.partial(torch.optim.Adam, lr=1e-2))


def _trajectory(
    loop: InnerLoop, steps: int, reference_steps: int | None, warm_steps: int,
    make: Callable[[], OuterOptimizer], key: int,
) -> list[_Point]:  # fmt: skip
    """Return the points of `warm_steps` outer steps; the first and the last have a reference."""
    optimizer, driver = make(), Implicit(ConjugateGradient(50, 0.0, 1e-10), inner_steps=0)
    optimizer.init(loop.problem.init_outer(generator(fold(key, "outer"))))
    inner, first, longest = None, None, 0
    points = []
    for t in range(warm_steps + 1):
        outer = tree.clone(optimizer.ask(fold(key, t, "ask")))
        loop.outer_step = t
        inner = loop.start(outer, inner, fold(key, t, "run"))
        first = first or _slope_norm(loop, outer, inner, key)
        # Only the first and the last point get a reference: those between move phi along.
        judged = t in (0, warm_steps)
        most = (steps if judged else steps // 10) if loop.problem.warm_start else 0
        inner, count, fall = _settle(loop, outer, inner, most, fold(key, t), first)
        longest = max(longest, count)
        depth = reference_steps or max(1, longest)
        copied = tree.clone(inner)
        points.append(_point(loop, outer, copied, fold(key, t, "run"), depth, fall, judged))
        if t < warm_steps:
            _, feedback = driver(loop, outer, tree.clone(inner), fold(key, t, "run"))
            optimizer.tell(feedback)
    return points


def _settle(
    loop: InnerLoop, outer: Tree, inner: GradientState, steps: int, key: int, first: float
) -> tuple[GradientState, int, float]:
    """Return the inner state, the steps taken, and the gradient's norm as a part of `first`."""
    last, done = _slope_norm(loop, outer, inner, key), 0
    while done < steps and last > SETTLED * first:
        count = min(100, steps - done)
        inner = loop.run(outer, inner, fold(key, done), count)
        done += count
        last = _slope_norm(loop, outer, inner, key)
    return inner, done, last / first if first else 0.0


def _slope_norm(loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> float:
    at = inner.at(tree.leaves(inner.params))
    loss = loop.inner_value(tree.detach(outer), at, Draw(key, total_inner_step=inner.step))
    return float(tree.norm(tree.gradient(loss, at.params)[0]))


def _point(
    loop: InnerLoop, outer: Tree, inner: GradientState, key: int, count: int,
    fall: float, judged: bool,
) -> _Point:  # fmt: skip
    words = (
        f"dF/dphi through {count} inner steps in float64, from theta where |dg/dtheta| is "
        f"{fall:.0e} of the first"
    )
    grad: Tree = {}
    if judged:
        unroll = Unroll(count, segments="auto")
        grad = _grad(unroll(loop, outer, tree.clone(inner), key)[1])
        if tree.norm(grad) == 0:
            raise ValueError(
                f"the exact hypergradient of {type(loop.problem).__name__} is zero here: nothing "
                f"can be compared with it. Check that inner_loss or outer_loss depends on the "
                f"outer variable, or take more steps."
            )
    problem: Any = loop.problem
    closed = problem.hypergradient(outer) if isinstance(problem, ClosedForm) else None
    return _Point(outer, inner, key, grad, closed, words)


def _compare(loop: InnerLoop, name: str, estimator: Estimator, points: list[_Point]) -> list[Row]:
    """Return a cold row and, where the estimator keeps a state and points go on, a warm one."""
    try:
        estimator.check(loop)
        row, used = _row(loop, name, copy.deepcopy(estimator), points[0], warm=False)
        if len(points) == 1 or next(tree.tensors(used.state_dict()), None) is None:
            return [row]
        for point in points[1:-1]:
            used(loop, *_as(loop, point))
        return [row, _row(loop, name, used, points[-1], warm=True)[0]]
    except (ValueError, TypeError, NotImplementedError) as error:
        return [Row(name, False, points[0].reference, refused=str(error))]


def _row(
    loop: InnerLoop, name: str, estimator: Estimator, point: _Point, warm: bool
) -> tuple[Row, Estimator]:
    """Return the row of one call, and the estimator after it."""
    # Measured apart: counting every operation would spoil the seconds.
    with PeakMemory() as meter:
        copy.deepcopy(estimator)(loop, *_as(loop, point))
    used, feedback, seconds = _timed(loop, estimator, point)
    grad = {k: v.double() for k, v in _grad(feedback).items()}
    cosine = _cosine(grad, point.exact)
    row = Row(
        name, warm, point.reference,
        cosine=cosine,
        error=_error(grad, point.exact),
        scaled_error=max(0.0, 1 - cosine**2) ** 0.5,
        closed_error=None if point.closed is None else _error(grad, point.closed),
        seconds=seconds,
        peak_bytes=meter.peak,
        cost=dict(feedback.cost),
    )  # fmt: skip
    return row, used


def _timed(
    loop: InnerLoop, estimator: Estimator, point: _Point
) -> tuple[Estimator, Feedback, float]:
    """Return the estimator after a call, what it said, and the seconds it took."""
    # Calls of microseconds are repeated, each from a copy of the estimator: it changes in a call.
    least, spent = float("inf"), 0.0
    while True:
        used, arguments = copy.deepcopy(estimator), _as(loop, point)
        started = time.perf_counter()
        _, feedback = used(loop, *arguments)
        float(feedback.value)  # waits for a GPU
        seconds = time.perf_counter() - started
        least, spent = min(least, seconds), spent + seconds
        if spent > 0.05:
            return used, feedback, least


def _as(loop: InnerLoop, point: _Point) -> tuple[Tree, GradientState, int]:
    """Return phi, a copy of the inner state, and the key, in the problem's own precision."""
    like = loop.problem.init_outer(generator(0))
    outer = {k: v.to(like[k].dtype) for k, v in point.outer.items()}
    state: GradientState = _cast_like(tree.clone(point.inner), loop.start(outer, None, 0))
    return outer, state, point.key


def _cast_like(state: Any, model: Any) -> Any:
    """Return a tree of tensors in the dtypes of another one of the same names."""
    if isinstance(state, GradientState):
        return GradientState(*map(_cast_like, state, model))
    if isinstance(state, dict):
        return {k: _cast_like(v, model[k]) for k, v in state.items()}
    return state.to(model.dtype) if isinstance(state, Tensor) else state


def _grad(feedback: Feedback) -> Tree:
    if feedback.grad is None:
        raise ValueError("gives no gradient.")
    return feedback.grad


def _error(grad: Tree, exact: Tree) -> float:
    return float(tree.norm(tree.add(exact, grad, -1.0)) / tree.norm(exact))


def _cosine(grad: Tree, exact: Tree) -> float:
    sizes = tree.norm(grad) * tree.norm(exact)
    return float(tree.dot(grad, exact) / sizes) if sizes > 0 else 0.0
