"""How far each estimator is from the exact hypergradient, on your own problem."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.protocols import Estimator, Feedback, OuterOptimizer, Tree
from metaopt.engine.random import generator
from metaopt.estimators.inner_run import require_gradients
from metaopt.testing.meter import PeakMemory
from metaopt.testing.precision import cast_like, failure, in_float64, with_one_batch
from metaopt.testing.reference import Plan, Point, points_of


@dataclass(frozen=True)
class Row:
    """One estimator against the reference r and differences of whole runs; g is what it returned.

    Args:
        estimator: name given to it.
        warm: whether it was called in the outer steps before this one.
        reference: what r is, and how far from the differences, in words.
        cosine: <g, r> / |g| |r|; 0 when g is 0.
        error: |g - r| / |r|.
        scaled_error: min over s of |s g - r| / |r|: the error in direction alone.
        difference_error: distance of g from central differences of the whole run, which share no
            code with estimators; see `metaopt.testing.differences.Differences.distance`.
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
    difference_error: float | None = None
    closed_error: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    refused: str | None = None


def check_hypergradient(
    problem: GradientProblem,
    estimators: Mapping[str, Estimator],
    *,
    steps: int = 100,
    reference_steps: int | None = None,
    warm_steps: int = 0,
    directions: int = 2,
    optimizer: Callable[[], OuterOptimizer] | None = None,
    exact: GradientProblem | None = None,
    key: int = 0,
) -> list[Row]:
    """Compare estimators with the exact derivative of an inner run, in float64.

    The reference r is dF/dphi through R inner steps from the start, by reverse mode in float64.
    The start is where the inner level gets in at most `steps` steps under the first phi, or where
    its gradient has fallen to 1e-10 of the first; where each run starts from scratch, that start
    itself. At an inner solution r tends to the implicit hypergradient as R grows. Every loss is
    evaluated on one inner and one outer batch, so that differences are the estimators' and not the
    sampling's; dropout masks stay as drawn.

    r is itself checked, and each estimator a second time, by central differences of the run
    through R steps along random directions (`metaopt.testing.run_differences`). An estimator that
    fails, and a reference that cannot be computed, are a line of the table and not its end.

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
        directions: in how many random directions whole runs are differenced; 0 for none. Costs 4
            to 8 runs of R steps each.
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
    plan = Plan(steps, reference_steps, warm_steps, directions, key, optimizer)
    problem = with_one_batch(problem, key)
    twin = with_one_batch(exact, key) if exact else in_float64(problem)
    points, ended = points_of(InnerLoop(twin), plan)
    rows = []
    for name, estimator in estimators.items():
        rows += _compare(InnerLoop(problem), name, estimator, points)
    if ended is not None:
        rows.append(Row("rows marked warm", True, points[0].reference, refused=ended))
    return rows


def _compare(loop: InnerLoop, name: str, estimator: Estimator, points: list[Point]) -> list[Row]:
    """Return a cold row and, where the estimator keeps a state and points go on, a warm one."""
    rows: list[Row] = []
    try:
        estimator.check(loop)
        row, used = _row(loop, name, copy.deepcopy(estimator), points[0], warm=False)
        rows.append(row)
        if len(points) > 1 and next(tree.tensors(used.state_dict()), None) is not None:
            for point in points[1:-1]:
                used(loop, *_as(loop, point))
            rows.append(_row(loop, name, used, points[-1], warm=True)[0])
    except Exception as error:  # whatever one estimator does, the others are compared
        reference = points[0].reference
        rows.append(Row(name, bool(rows), reference, refused=failure(error)))
    return rows


def _row(
    loop: InnerLoop, name: str, estimator: Estimator, point: Point, warm: bool
) -> tuple[Row, Estimator]:
    """Return the row of one call, and the estimator after it."""
    # Measured apart: counting every operation would spoil the seconds.
    with PeakMemory() as meter:
        copy.deepcopy(estimator)(loop, *_as(loop, point))
    used, feedback, seconds = _timed(loop, estimator, point)
    grad = {k: v.double() for k, v in _grad(feedback).items()}
    cosine = None if point.exact is None else _cosine(grad, point.exact)
    row = Row(
        name, warm, point.reference,
        cosine=cosine,
        error=None if point.exact is None else _error(grad, point.exact),
        scaled_error=None if cosine is None else max(0.0, 1 - cosine**2) ** 0.5,
        difference_error=None if point.differences is None else point.differences.distance(grad),
        closed_error=None if point.closed is None else _error(grad, point.closed),
        seconds=seconds,
        peak_bytes=meter.peak,
        cost=dict(feedback.cost),
    )  # fmt: skip
    return row, used


def _timed(
    loop: InnerLoop, estimator: Estimator, point: Point
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


def _as(loop: InnerLoop, point: Point) -> tuple[Tree, GradientState, int]:
    """Return phi, a copy of the inner state, and the key, in the problem's own precision."""
    like = loop.problem.init_outer(generator(0))
    outer = {k: v.to(like[k].dtype) for k, v in point.outer.items()}
    state: GradientState = cast_like(tree.clone(point.inner), loop.start(outer, None, 0))
    return outer, state, point.key


def _grad(feedback: Feedback) -> Tree:
    if feedback.grad is None:
        raise ValueError("gives no gradient.")
    if not tree.norm(feedback.grad).isfinite():
        raise ValueError("gives a gradient that is not finite.")
    return feedback.grad


def _error(grad: Tree, exact: Tree) -> float:
    return float(tree.norm(tree.add(exact, grad, -1.0)) / tree.norm(exact))


def _cosine(grad: Tree, exact: Tree) -> float:
    sizes = tree.norm(grad) * tree.norm(exact)
    return float(tree.dot(grad, exact) / sizes) if sizes > 0 else 0.0
