"""Whether training is smooth enough for its hypergradient to predict what retraining gives."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import loop_of
from metaopt.engine.protocols import Estimator, OuterOptimizer, Tree
from metaopt.estimators.inner_run import require_gradients
from metaopt.testing.precision import float64_loop, short
from metaopt.testing.retraining import Retraining
from metaopt.testing.verdict import POOR, Level, Verdict, calming, in_order, level_of

FRACTION = 0.01
"""The short step that S is compared at, as a part of the outer optimizer's own."""

FEWEST = 4
"""Retrainings below which no correlation is given."""

SMOOTHER = (
    "a smoother model (smooth activations, average instead of max pooling, a smaller scale of the "
    "last layer)"
)
"""What the reference found to help, beside the settings of the inner optimizer."""

SHORTER = "a smaller outer_lr"

CONSTANTS = (
    "A shorter step changes nothing: look for what a loss detaches, computes under torch.no_grad() "
    "or rounds, and for what prepare_batch decides, which estimators hold constant and retraining "
    "moves."
)

LEAST_RUNS = 12
"""What is measured at least, in runs without a graph: five of them, and a hypergradient or two."""


@dataclass(frozen=True)
class Smoothness:
    """How a run of K inner steps answers a step u of the outer optimizer.

    S is the empirical metasmoothness of theta_K, in [-1, 1] and 1 where it moves along a line: with
    d1 and d2 the changes of theta_K over the first and the second of two steps u,
    S = sum |d1 + d2| sign(d1) sign(d2) / sum |d1 + d2|, over all entries of theta_K.

    Args:
        inner_steps: K.
        step: |u|, the norm.
        at_step: S at the step u.
        at_fraction: S at u / 100.
        predicted: <dF/dphi, u> with the exact derivative through the K steps, or `None`.
        actual: F(phi + u) - F(phi), each after K inner steps under the same key.
        actual_at_fraction: F(phi + u / 100) - F(phi), or `None` where rounding hides it.
        correlation: of predicted and actual changes of F over `retrainings` random parts of such
            steps, or `None` without a prediction, or where none was afforded.
        retrainings: how many.
        adjoint_growth: |dF/dtheta_0| / |dF/dtheta_K|, of the parameters, or `None`.
        dtype: what the runs were computed in.
        cures: what makes training smoother, in the order in which to try it.
        missing: why there is no prediction, or empty.
    """

    inner_steps: int
    step: float
    at_step: float
    at_fraction: float
    predicted: float | None
    actual: float
    correlation: float | None
    retrainings: int
    adjoint_growth: float | None
    dtype: str
    cures: tuple[str, ...]
    missing: str = ""
    actual_at_fraction: float | None = None

    @property
    def fits_at_fraction(self) -> bool:
        """Whether a shorter step brings the prediction nearer to F; true where that is unknown.

        The error of an exact derivative falls as the square of the step, and by a hundredth of it
        relative to the change. One of what estimators hold constant falls as the step itself.
        """
        if not self.predicted or self.actual_at_fraction is None:
            return True
        at_step = abs(self.actual / self.predicted - 1)
        at_fraction = abs(self.actual_at_fraction / (FRACTION * self.predicted) - 1)
        return at_fraction <= max(1 - POOR, at_step / 10)

    @property
    def verdict(self) -> Verdict:
        """What the numbers mean, and what to do.

        The correlation decides, since it is what a user wants to know; S below 0.9 is a warning.
        """
        smooth = self.at_step >= POOR
        level: Level = "warning" if self.correlation is None else level_of(self.correlation)
        if smooth and self.correlation is None:
            return Verdict("fine", "theta_K answers one outer step smoothly.")
        if smooth and level == "fine":
            return Verdict("fine", "retraining follows the hypergradient over one outer step.")
        if level == "error":
            text = "retraining does not follow the hypergradient over one outer step"
        elif smooth:
            text = "retraining follows the hypergradient over one outer step only roughly"
        else:
            text = "theta_K does not answer one outer step smoothly"
        level = "warning" if level == "fine" else level
        if self.at_fraction >= POOR and not self.fits_at_fraction:
            return Verdict(level, f"{text}; nor does it over a hundredth. {CONSTANTS}")
        if smooth and self.at_fraction >= POOR:
            text += "; theta_K moves smoothly, and F bends over the step"
            return Verdict(level, f"{text}. {in_order([SHORTER])}")
        if self.at_fraction >= POOR:
            text += "; at a hundredth of it theta_K still moves smoothly"
            return Verdict(level, f"{text}. {in_order([SHORTER, *self.cures])}")
        text += "; training is rough even at a hundredth of it"
        if self.correlation is not None and self.correlation >= POOR:
            text += f", but the hypergradient predicts F (correlation {self.correlation:.2f})"
        else:
            text += ", so that a hypergradient, however exact, says little of where retraining ends"
        return Verdict(level, f"{text}. {in_order(self.cures)}")


def check_smoothness(
    problem: GradientProblem,
    estimator: Estimator,
    optimizer: OuterOptimizer,
    *,
    retrainings: int = 16,
    seconds: float | None = None,
    key: int = 0,
) -> Smoothness:
    """Measure how smooth the first outer step of a run is, in float64 where the problem allows.

    u is the step that the outer optimizer takes for the estimator's hypergradient. Each retraining
    is K inner steps without a graph, from the same start, on the same batches and masks: at phi,
    after one and after two steps u, at 1 and 2 % of u for S; and at phi + t w for the correlation,
    with t uniform in [0, 1] and w the step that the optimizer takes for a hypergradient whose
    entries have random signs. phi never leaves where the optimizer may lead it.

        smoothness = check_smoothness(MyProblem(), Unroll(200), Descent("adam", lr=0.1))
        print(smoothness.at_step, smoothness.correlation, smoothness.verdict)

    Args:
        problem: any `GradientProblem`.
        estimator: gives the hypergradient; it is copied, and left as it was. K is its
            `inner_steps`.
        optimizer: takes the step; copied as well.
        retrainings: how many for the correlation, >= 0.
        seconds: most time to spend, or `None`; fewer retrainings are made where it is short.
        key: the seed of the run.

    Cost: 5 runs without a graph, `retrainings` more, one or two hypergradients.

    Raises:
        TypeError: the problem has no gradients, or the optimizer does not use them.
        ValueError: an argument out of range; the estimator refuses the problem or gives no
            gradient; the optimizer does not move; `seconds` is too short for K inner steps.

    Reference: Engstrom et al., Optimizing ML Training with Metagradient Descent, arXiv 2503.13751,
    2025, definition 2, there along a given direction with a given h.
    """
    if retrainings < 0:
        raise ValueError(f"retrainings must be >= 0; got {retrainings}.")
    require_gradients(loop_of(problem), "check_smoothness", through_decisions=False)
    if not getattr(optimizer, "needs_gradient", False):
        raise TypeError(
            f"{type(optimizer).__name__} takes no step along a hypergradient; check_smoothness "
            f"needs an outer optimizer that does, such as Descent."
        )
    began = time.monotonic()
    loop, estimator = float64_loop(problem)[0], copy.deepcopy(estimator)
    estimator.check(loop)
    run = Retraining(loop, int(getattr(estimator, "inner_steps", 1)), key)
    each = run.seconds()
    if seconds is not None and LEAST_RUNS * each > seconds:
        raise ValueError(
            f"five runs of {run.steps} inner steps and a hypergradient take about "
            f"{LEAST_RUNS * each:.0f} s, more than the {seconds:.0f} s allowed."
        )
    _, feedback = estimator(loop, run.outer, run.start(), run.key)
    if feedback.grad is None:
        raise ValueError(f"{type(estimator).__name__} gives no gradient.")
    if not tree.norm(feedback.grad).isfinite():
        raise ValueError(
            f"the hypergradient after {run.steps} inner steps is not finite: training diverges, or "
            f"the adjoint overflows. Take a smaller inner learning rate, or fewer inner steps."
        )
    once, twice = run.steps_of(optimizer, feedback.grad, 2)
    u = tree.add(once, run.outer, -1.0)
    here, there = run(run.outer), run(once)
    near = [run(tree.add(run.outer, u, k * FRACTION)) for k in (1, 2)]
    exact, growth, missing = run.exact(estimator, feedback)
    count = retrainings
    if seconds is not None:
        count = int(min(count, max(0.0, (seconds - (time.monotonic() - began)) / each)))
    change, dtype = near[0][1] - here[1], next(iter(run.outer.values())).dtype
    rounding = 100 * torch.finfo(dtype).eps * abs(here[1])
    correlation = None
    if exact is not None and count >= FEWEST:
        correlation = run.correlation(optimizer, feedback.grad, exact, here[1], count)
    return Smoothness(
        inner_steps=run.steps,
        step=float(tree.norm(u)),
        at_step=metasmoothness(here[0], there[0], run(twice)[0]),
        at_fraction=metasmoothness(here[0], *(theta for theta, _ in near)),
        predicted=None if exact is None else float(tree.dot(exact, u)),
        actual=there[1] - here[1],
        correlation=correlation,
        retrainings=0 if correlation is None else count,
        adjoint_growth=growth,
        dtype=short(dtype),
        cures=(*calming(loop.optimizer(run.outer, 0)), SMOOTHER),
        missing=missing,
        actual_at_fraction=change if abs(change) > rounding else None,
    )


def metasmoothness(first: Tree, second: Tree, third: Tree) -> float:
    """Return S of three values of theta_K, 1 where nothing moves; see `Smoothness`."""
    agreeing = moved = 0.0
    for name, start in first.items():
        d1, d2 = second[name] - start, third[name] - second[name]
        size = (d1 + d2).abs()
        agreeing += float((size * d1.sign() * d2.sign()).sum())
        moved += float(size.sum())
    return agreeing / moved if moved else 1.0
