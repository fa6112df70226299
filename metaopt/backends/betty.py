"""Run a gradient problem by betty-ml: its engine, its problem class, its hypergradients.

betty-ml (Choe et al., ICLR 2023) is an independent implementation of some of the estimators here.
Its features that are known to give wrong results are worked around or rejected; see `BettyEngine`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from metaopt.engine import Engine, distributed, tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Estimator, OuterOptimizer, Tree
from metaopt.engine.random import generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.estimators.conjugate_gradient import ConjugateGradient
from metaopt.estimators.finite_difference import FiniteDifference
from metaopt.estimators.implicit import Implicit
from metaopt.estimators.inner_run import InnerRun, Result
from metaopt.estimators.neumann import Neumann
from metaopt.estimators.solvers import Identity

INSTALL = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"

Type = Literal["darts", "neumann", "cg"]

STEP = "estimator.solve.step=0.1 (any below 2 / the largest eigenvalue of the inner Hessian)"
OPTIONS = (
    "With engine=betty use estimator=implicit_identity, estimator=finite_difference, or "
    f"estimator=implicit_neumann {STEP}; or use engine=metaopt."
)
"""What works with `engine=betty`, as one types it on the command line."""


class BettyHypergradient(InnerRun):
    """One run of betty's engine: K inner steps, then its hypergradient, as an estimator.

    `darts` is dF/dphi - [d/dphi g(theta + e v) - d/dphi g(theta - e v)] / 2e, e = alpha / |v|;
    `neumann` is dF/dphi - J^T alpha sum_{i <= iterations} (I - alpha H)^i v;
    `cg` is meant to be dF/dphi - J^T q with H q = v by conjugate gradients, but is right for one
    iteration only: the second direction is built on the first residual.
    The defaults are betty's own and are rarely good: where curvature exceeds 2 / alpha, `neumann`
    diverges. Scale: free of the inner learning rate.

    betty runs the loop and the derivative; the steps are taken by the problem's inner optimizer,
    so that AdamW, parameter groups and schedules work, which betty's own patching loses. Batches
    and dropout masks follow from the key, and a hypergradient evaluates g on the ones that
    `metaopt.estimators.Implicit` would draw. Buffers move only with the inner steps.

    Args:
        type: betty's name of the hypergradient.
        iterations: number of products, >= 0; at least 1 for `cg`; read by `neumann` and `cg`.
        alpha: radius of `darts`, step of `neumann`; 0.01 and 1 in betty.
        inner_steps: number K of inner steps, >= 1.
        relative: whether alpha of `darts` is times |theta|, as in `metaopt.estimators`; then its
            default is the fourth root of the dtype's machine epsilon.

    Raises:
        ImportError: betty-ml is not installed; names the command.

    Cost: K + 1 gradients, then 2 for `darts`, or 1 and `iterations` + 1 products.

    Reference: Choe et al., Betty, ICLR 2023.
    """

    def __init__(
        self,
        type: Type,
        iterations: int = 1,
        alpha: float | None = None,
        inner_steps: int = 1,
        relative: bool = False,
    ) -> None:
        super().__init__(inner_steps)
        self.type, self.iterations, self.alpha, self.relative = type, iterations, alpha, relative
        check_choices(self, type=get_args(Type))
        check_ranges(self, "iterations >= 1" if type == "cg" else "iterations >= 0")
        if distributed.world_size() > 1:
            raise ValueError("betty runs in one process here; under torchrun use engine=metaopt.")
        _import_betty()
        self._bound: InnerLoop | None = None

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where betty would crash or solve another system; see `Estimator.check`."""
        super().check(loop)
        if self.type != "darts":
            _import_betty().require_curvature(loop)
            outer = loop.problem.init_outer(generator(0))
            params = loop.initial(outer, 0).params
            slope = tree.zeros_like(params)
            if loop.optimizer(outer, 0).stationary_gradient(params, slope) is not slope:
                raise ValueError(
                    f"betty's {self.type} solves for the minimum of inner_loss alone, and the "
                    f"inner optimizer has weight_decay. Put the decay in inner_loss, or use "
                    f"engine=metaopt."
                )

    def _bind(self, loop: InnerLoop, outer: Tree, inner: GradientState) -> None:
        """Build betty's engine, for a phi and an inner state of these names and shapes."""
        chosen: dict[str, Any] = {} if self.alpha is None else {f"{self.type}_alpha": self.alpha}
        if self.type != "darts":
            chosen[f"{self.type}_iterations"] = self.iterations
        elif self.relative and self.alpha is None:
            chosen["darts_alpha"] = torch.finfo(next(iter(inner.params.values())).dtype).eps ** 0.25
        betty = _import_betty()
        config = betty.Config(type=self.type, unroll_steps=self.inner_steps, **chosen)
        self._pair = betty.Pair(loop, outer, inner, config, self.relative)
        self._bound = loop

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and betty's hypergradient there."""
        if loop is not self._bound:
            self._bind(loop, outer, inner)
        with twice_differentiable():
            inner, value, grad = self._pair.run(outer, inner, key)
        gradients, hvps = (2, 0) if self.type == "darts" else (1, self.iterations + 1)
        gradients += self.inner_steps + 1
        return self.result(inner, value, grad, gradients=gradients, hvps=hvps)


def translate(estimator: Estimator) -> BettyHypergradient:
    """Return betty's form of an estimator, with the same numbers to round-off.

    `Implicit(Identity())` becomes betty's Neumann series with one term, which is exact where its
    darts is a finite difference; `Implicit(Neumann(terms, step))` keeps its step;
    `FiniteDifference` becomes darts with its radius.

    Raises:
        ValueError: betty has no such estimator, or not with these settings; says what it has.
    """
    if isinstance(estimator, BettyHypergradient):
        return estimator
    if isinstance(estimator, FiniteDifference):
        return BettyHypergradient(
            "darts", alpha=estimator.epsilon, inner_steps=estimator.inner_steps, relative=True
        )
    if not isinstance(estimator, Implicit):
        raise ValueError(f"betty has no {type(estimator).__name__}. {OPTIONS}")
    if estimator.tasks > 1:
        raise ValueError(
            f"betty runs one inner level, not tasks={estimator.tasks}. Use tasks=1 or "
            f"engine=metaopt."
        )
    solve, steps = estimator.solve, estimator.inner_steps
    if isinstance(solve, Identity):
        return BettyHypergradient("neumann", iterations=0, alpha=1.0, inner_steps=steps)
    if isinstance(solve, Neumann):
        if solve.step is None:
            raise ValueError(
                "betty cannot find a step for its Neumann series, and its default of 1 diverges "
                f"where curvature exceeds 2. Add {STEP}, or use engine=metaopt."
            )
        return BettyHypergradient("neumann", solve.terms - 1, solve.step, inner_steps=steps)
    if isinstance(solve, ConjugateGradient):
        raise ValueError(
            "betty's conjugate gradients build each direction on the previous residual, and their "
            f"error grows with the iterations. {OPTIONS}"
        )
    raise ValueError(f"betty has no solver {type(solve).__name__}. {OPTIONS}")


class BettyEngine(Engine):
    """metaopt's outer loop around betty's inner loop and hypergradient.

    It has the interface of `metaopt.engine.Engine`, resume included, and for the same seed draws
    the same batches, so that a run differs from `engine=metaopt` only where the numbers do.

    Args:
        problem: a `GradientProblem`.
        estimator: what `translate` accepts, or a `BettyHypergradient`.
        optimizer, outer_steps, seed, limits: see `metaopt.engine.Engine`.

    Raises:
        TypeError: the problem has no gradients.
        ValueError: betty cannot run this estimator or this problem.
        ImportError: betty-ml is not installed; names the command.
    """

    def __init__(
        self,
        problem: GradientProblem,
        estimator: Estimator,
        optimizer: OuterOptimizer,
        *,
        outer_steps: int,
        seed: int = 0,
        limits: Mapping[str, float | None] | None = None,
    ) -> None:
        super().__init__(
            problem, translate(estimator), optimizer, outer_steps=outer_steps, seed=seed,
            limits=limits,
        )  # fmt: skip


def _import_betty() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from metaopt.backends import betty_levels
        except ImportError as error:
            raise ImportError(f"engine=betty needs betty-ml: {INSTALL}") from error
    return betty_levels
