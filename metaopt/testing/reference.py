"""Where estimators are compared, and with what: exact derivatives in float64 along a short run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.population import asks_for_members
from metaopt.engine.protocols import OuterOptimizer, Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.conjugate_gradient import ConjugateGradient
from metaopt.estimators.implicit import Implicit
from metaopt.estimators.unroll import Unroll
from metaopt.optimizers.descent import Descent
from metaopt.testing.differences import Differences, run_differences
from metaopt.testing.precision import failure, require_float64

SETTLED = 1e-10
AGREED = 1e-6


@runtime_checkable
class ClosedForm(Protocol):
    """A problem that knows its hypergradient at the inner solution."""

    def hypergradient(self, outer: Tree) -> Tree:
        """Return dF(phi, theta*(phi))/dphi."""
        ...


@dataclass(frozen=True)
class Point:
    """Where estimators are compared, and with what.

    Args:
        outer, inner, key: what an estimator is called with.
        exact: reverse mode through the run, or `None` between two points and where it failed.
        differences: of the whole run, or `None`.
        closed: the closed form, or `None`.
        reference: what `exact` and `differences` are, in words.
    """

    outer: Tree
    inner: GradientState
    key: int
    exact: Tree | None
    differences: Differences | None
    closed: Tree | None
    reference: str


@dataclass(frozen=True)
class Plan:
    """How far a comparison goes; see `metaopt.testing.check_hypergradient`."""

    steps: int
    reference_steps: int | None
    warm_steps: int
    directions: int
    key: int
    optimizer: Callable[[], OuterOptimizer] | None

    def __post_init__(self) -> None:
        check_ranges(
            self, "steps >= 0", "reference_steps >= 1 or null", "warm_steps >= 0", "directions >= 0"
        )


def points_of(loop: InnerLoop, plan: Plan) -> tuple[list[Point], str | None]:
    """Return the points of `warm_steps` outer steps, and why they end early or `None`.

    The first and the last point have references.

    Args:
        loop: of the problem in float64.
        plan: how far to go.

    Raises:
        ValueError: the problem does not run in float64, or its hypergradient is zero.
    """
    try:
        return _points(loop, plan)
    except RuntimeError as error:
        raise ValueError(
            f"{type(loop.problem).__name__} does not run in float64 after casting its attributes: "
            f"{error}. Pass exact=<the problem built in float64>."
        ) from error


def _points(loop: InnerLoop, plan: Plan) -> tuple[list[Point], str | None]:
    optimizer = (plan.optimizer or _adam)()
    if asks_for_members(optimizer):  # of a population, with as many outer variables
        optimizer = _adam()
    driver, key = Implicit(ConjugateGradient(50, 0.0, 1e-10), inner_steps=0), plan.key
    optimizer.init(loop.problem.init_outer(generator(fold(key, "outer"))))
    inner, first, longest = None, None, 0
    points: list[Point] = []
    for t in range(plan.warm_steps + 1):
        outer = tree.clone(optimizer.ask(fold(key, t, "ask")))
        loop.outer_step = t
        inner = loop.start(outer, inner, fold(key, t, "run"))
        first = first or _slope_norm(loop, outer, inner, key)
        # Only the first and the last point get a reference: those between move phi along.
        judged = t in (0, plan.warm_steps)
        most = (plan.steps if judged else plan.steps // 10) if loop.problem.warm_start else 0
        inner, count, fall = _settle(loop, outer, inner, most, fold(key, t), first)
        longest = max(longest, count)
        depth = plan.reference_steps or max(1, longest)
        at = outer, tree.clone(inner), fold(key, t, "run")
        exact, differences, words = None, None, ""
        if judged:
            exact, differences, words = _references(loop, at, depth, plan.directions)
        problem: Any = loop.problem
        closed = problem.hypergradient(outer) if isinstance(problem, ClosedForm) else None
        start = f"from theta where |dg/dtheta| is {fall:.0e} of the first"
        reference = words.format(f"through {depth} inner steps in float64, {start}")
        points.append(Point(*at, exact, differences, closed, reference))
        if t < plan.warm_steps:
            try:
                _, feedback = driver(loop, outer, tree.clone(inner), fold(key, t, "run"))
            except Exception as error:
                return points[:1], f"no solve moves phi along. {failure(error)}"
            optimizer.tell(feedback)
    return points, None


def _adam() -> OuterOptimizer:
    return Descent(functools.partial(torch.optim.Adam, lr=1e-2))


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
    require_float64(loop.problem, "inner_loss", loss)
    return float(tree.norm(tree.gradient(loss, at.params)[0]))


def _references(
    loop: InnerLoop, at: tuple[Tree, GradientState, int], steps: int, directions: int
) -> tuple[Tree | None, Differences | None, str]:
    """Return the derivative through a run by reverse mode, its differences, and both in words."""
    outer, inner, key = at
    exact, differences, words = None, None, "dF/dphi {}"
    try:
        _, feedback = Unroll(steps, schedule="segments")(loop, outer, tree.clone(inner), key)
        exact = feedback.grad or {}
    except Exception as error:
        words = "none {}, since reverse mode fails (" + failure(error) + ")"
    if exact is not None and tree.norm(exact) == 0:
        raise ValueError(
            f"the exact hypergradient of {type(loop.problem).__name__} is zero here: nothing "
            f"can be compared with it. Check that inner_loss or outer_loss depends on the "
            f"outer variable, or take more steps."
        )
    if directions:
        differences = run_differences(loop, outer, inner, key, steps, directions)
        words += f". Differences of the whole run, good to {differences.uncertainty:.0e}"
        if exact is not None:
            words += f", are {differences.distance(exact):.0e} from r"
            if not differences.distance(exact) <= AGREED + 10 * differences.uncertainty:
                words += (
                    ": wrong, unless a loss detaches on purpose or prepare_batch decides, which "
                    "estimators hold constant"
                )
    return exact, differences, words
