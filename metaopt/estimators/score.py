"""Run and measure: for levels that cannot be differentiated."""

from __future__ import annotations

import dataclasses
from typing import Any

from metaopt.engine.inner import run
from metaopt.engine.protocols import Feedback, Problem
from metaopt.engine.random import fold
from metaopt.estimators.stateless import Stateless


class Score(Stateless):
    """No gradient: take K inner steps, evaluate, report what the problem reports.

    Args:
        inner_steps: number K of inner steps, >= 0.

    Cost: K inner steps and one evaluation, beside what the problem charges itself.
    """

    def __init__(self, inner_steps: int = 1) -> None:
        if inner_steps < 0:
            raise ValueError(f"Score needs inner_steps >= 0; got {inner_steps}.")
        self.inner_steps = inner_steps

    def __call__(self, problem: Problem, outer: Any, inner: Any, key: int) -> tuple[Any, Feedback]:
        """Return the inner state after K steps and the problem's own feedback."""
        inner = run(problem, outer, inner, key, self.inner_steps)
        feedback = problem.evaluate(outer, inner, fold(key, "outer"))
        cost = {"inner_steps": self.inner_steps, "evaluations": 1, **feedback.cost}
        return inner, dataclasses.replace(feedback, cost=cost)
