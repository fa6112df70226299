"""What estimators talk to where a problem steps and evaluates itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metaopt.engine.inner_progress import Progress
from metaopt.engine.protocols import Feedback, Problem
from metaopt.engine.random import fold, generator


class BlackBoxLoop:
    """The inner level of a problem that steps and evaluates itself.

    Args:
        problem: with `init_inner`, `inner_step` and `evaluate`.

    Attributes:
        outer_step: outer steps taken so far; the engine sets it.
        folder: where an estimator may keep what a killed outer step goes on from, or `None`; the
            run sets it.
        frozen_hash: `None`: a black box has no frozen weights.
        progress: how far the current inner run has come.
    """

    frozen_hash = None

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.outer_step = 0
        self.folder: Path | None = None
        self.progress = Progress()

    def start(self, outer: Any, last: Any, key: int) -> Any:
        """Return where an inner run starts, from what the last one left or `None`."""
        return self.problem.init_inner(outer, last, key)

    def run(self, outer: Any, inner: Any, key: int, steps: int) -> Any:
        """Return the inner state after `steps` steps.

        `inner` may be modified in place; do not use it afterwards.
        """
        for k in self.progress.track(range(steps), "inner step"):
            inner = self.problem.inner_step(outer, inner, fold(key, k))
        return inner

    def evaluate(self, outer: Any, inner: Any, key: int) -> Feedback:
        """Return the meta-objective of `inner`, without a gradient."""
        return self.problem.evaluate(outer, inner, fold(key, "outer"))

    def finish(self, outer: Any, inner: Any, key: int) -> Any:
        """Return the inner state after the problem's last phase."""
        return self.problem.finish(outer, inner, key)

    def initial_outer(self, key: int) -> Any:
        """Return the first outer variable."""
        return self.problem.init_outer(generator(key))

    def observe(self, outer: Any, inner: Any, feedback: Feedback) -> Any:
        """Return the inner state with what the problem notes of the feedback."""
        return self.problem.observe(outer, inner, feedback)

    def metrics(self, outer: Any, inner: Any) -> Mapping[str, float | Tensor]:
        """Return the problem's figures on held-out data."""
        return self.problem.metrics(outer, inner)
