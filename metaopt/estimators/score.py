"""Run and measure: for levels that cannot be differentiated."""

from __future__ import annotations

import dataclasses
from typing import Any

from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Feedback
from metaopt.estimators.inner_run import InnerRun, check_run


class Score(InnerRun):
    """No gradient: take K inner steps, evaluate, report what the problem reports.

    Args:
        inner_steps: number K of inner steps, >= 0.

    Cost: K inner steps (of a gradient problem K gradients) and one evaluation, in addition to what
    the problem charges itself.

    Example:
        >>> from metaopt import Score, Search, run
        >>> from metaopt.optimizers import Mutation
        >>> from metaopt.problems.examples import Knapsack
        >>> search = Search(Mutation(vocabulary=["add", "drop", "worst", "swap"]))
        >>> result = run(Knapsack(), Score(inner_steps=2), search, 20, progress=False)
        >>> result.outer != "add"  # a better list of moves than the first one
        True
    """

    least_steps = 0
    gives_gradient = False

    def check(self, loop: BlackBoxLoop | InnerLoop) -> None:
        """Raise a `ValueError` if training the problem's modules would be wrong."""
        check_run(loop)

    def check_again(self, loop: Any, outer: Any, inner: Any, key: int) -> None:
        """Check nothing: no derivative is taken."""

    def estimate(
        self, loop: BlackBoxLoop | InnerLoop, outer: Any, inner: Any, key: int
    ) -> tuple[Any, Feedback]:
        """Return the inner state after K steps and the problem's own feedback."""
        inner = loop.run(outer, inner, key, self.inner_steps)
        feedback = loop.evaluate(outer, inner, key)
        gradients = {"gradients": self.inner_steps} if isinstance(loop, InnerLoop) else {}
        cost = {"inner_steps": self.inner_steps, "evaluations": 1, **gradients, **feedback.cost}
        return inner, dataclasses.replace(feedback, cost=cost)
