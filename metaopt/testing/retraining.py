"""A run's inner training, repeated under other phi: what a step of the outer optimizer changes."""

from __future__ import annotations

import copy
import time

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Estimator, Feedback, OuterOptimizer, Tree
from metaopt.engine.random import fold, generator
from metaopt.estimators.unroll import Unroll
from metaopt.testing.differences import retrained
from metaopt.testing.precision import failure

MOST_TELLS = 1000
"""Hypergradients after which an optimizer that has not moved is one that does not move."""


class Retraining:
    """The first inner run of a run, again under any phi: the same start, batches and masks.

    Args:
        loop: the inner level.
        steps: number K of inner steps.
        seed: that of the run.

    Attributes:
        outer: the run's first phi.
        key: that of its first outer step.
    """

    def __init__(self, loop: InnerLoop, steps: int, seed: int) -> None:
        self.loop, self.steps, self.key = loop, steps, fold(seed, 0)
        self.outer = loop.initial_outer(fold(seed, "outer"))

    def start(self) -> GradientState:
        """Return where the run starts under the first phi."""
        return self.loop.start(self.outer, None, self.key)

    def __call__(self, outer: Tree) -> tuple[Tree, float]:
        """Return theta_K and F."""
        end, value = retrained(self.loop, outer, self.start(), self.key, self.steps)
        return end.params, float(value)

    def seconds(self) -> float:
        """Return about how long one takes, from its first steps."""
        few = min(self.steps, 3)
        took = []
        for _ in range(2):  # the first one is slower
            began = time.perf_counter()
            float(retrained(self.loop, self.outer, self.start(), self.key, few)[1])
            took.append(time.perf_counter() - began)
        return took[1] * self.steps / max(few, 1)

    def steps_of(self, optimizer: OuterOptimizer, grad: Tree, count: int) -> list[Tree]:
        """Return phi after each of `count` steps that the optimizer takes for one hypergradient."""
        optimizer = copy.deepcopy(optimizer)
        optimizer.init(tree.clone(self.outer))
        points = [self.outer]
        for i in range(MOST_TELLS):  # an optimizer that accumulates moves now and then
            at: Tree = tree.clone(optimizer.ask(fold(self.key, "ask", i)))
            if float(tree.norm(tree.add(at, points[-1], -1.0))) > 0:
                points.append(at)
            if len(points) > count:
                return points[1:]
            optimizer.tell(Feedback(0.0, tree.clone(grad)))
        raise ValueError(
            f"{type(optimizer).__name__} does not move phi for a hypergradient of norm "
            f"{float(tree.norm(grad)):.1e}. Set a learning rate above zero, or look for what keeps "
            f"the hypergradient at zero."
        )

    def exact(
        self, estimator: Estimator, feedback: Feedback
    ) -> tuple[Tree | None, float | None, str]:
        """Return dF/dphi through all steps, the growth of the adjoint, and why there is neither."""
        whole = isinstance(estimator, Unroll) and estimator.truncation == self.steps
        try:
            if not whole or getattr(estimator, "tasks", 1) > 1:
                unroll = Unroll(max(self.steps, 1))
                unroll.check(self.loop)
                feedback = unroll(self.loop, self.outer, self.start(), self.key)[1]
        except (ValueError, TypeError, RuntimeError) as error:
            return None, None, failure(error)
        growth = feedback.metrics.get("inner/adjoint_growth")
        return feedback.grad, None if growth is None else float(growth), ""

    def correlation(
        self, optimizer: OuterOptimizer, grad: Tree, exact: Tree, value: float, count: int
    ) -> float:
        """Return the correlation of predicted and actual changes of F after random steps.

        Args:
            optimizer: takes the steps, for hypergradients whose entries have random signs; each is
                then cut to a random part, so that phi stays where the optimizer may lead it.
            grad: the hypergradient.
            exact: dF/dphi, which predicts.
            value: F without a step.
            count: how many steps.
        """
        changes = []
        for i in range(count):
            draw = generator(fold(self.key, "retraining", i))
            signs = {k: v.sign() for k, v in tree.random_like(grad, draw).items()}
            flipped = {k: v * signs[k] for k, v in grad.items()}
            (end,) = self.steps_of(optimizer, flipped, 1)
            part = float(torch.rand((), generator=draw))
            step = tree.scale(tree.add(end, self.outer, -1.0), part)
            actual = self(tree.add(self.outer, step))[1] - value
            changes.append([float(tree.dot(exact, step)), actual])
        table = torch.tensor(changes, dtype=torch.float64)
        return float(torch.corrcoef(table.T)[0, 1])
