"""A learning-rate schedule of a small classifier of digits, trained from scratch each time."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.examples.tuned_digits import TunedDigits

Decay = Literal["none", "cosine"]


class ScheduledDigits(TunedDigits):
    """g and F of `TunedDigits`; phi is learning rates at several knots, and a weight decay.

    lr_k = c_k exp((1 - w) phi_i + w phi_{i+1}),  i + w = k (knots - 1) / (steps - 1),

    linear between knots in the logarithm, with c_k = 1, or (1 + cos(pi k / steps)) / 2 for
    `decay="cosine"` (Loshchilov and Hutter, SGDR, ICLR 2017). An outer step trains from scratch:
    F is the validation loss at the end of a whole training, so that a rate is chosen for where it
    leads, not for what it gains in the next steps.

    Symbols: phi = `outer["log_lr"]`, (knots,), natural logarithms, and
    `outer["log_weight_decay"]`, scalar; k counts the inner steps of a training from 0. One knot is
    a constant rate.

    Args:
        steps: inner steps of a training, >= 2, the estimator's `inner_steps`.
        knots: number of rates, >= 1; of more than `steps`, some are at no step and have no effect.
        decay: see above.
        **tuned: the arguments of `TunedDigits`; all knots start at `lr`.

    Raises:
        ValueError: an argument outside its range; in the first outer step, an estimator whose
            `inner_steps` is not `steps`: F would be of another training than the metrics.

    Cost: of metrics, one more training after the last outer step, under the chosen schedule.

    Example:
        >>> from metaopt import Descent, Forward, run
        >>> problem, adam = ScheduledDigits(steps=20, knots=3), Descent("adam", lr=0.3)
        >>> result = run(problem, Forward(inner_steps=20), adam, 5, progress=False)
        >>> result.outer["log_lr"].shape
        torch.Size([3])
    """

    warm_start = False

    def __init__(
        self, steps: int = 100, knots: int = 5, decay: Decay = "none", **tuned: float
    ) -> None:
        super().__init__(**tuned)  # type: ignore[arg-type]
        self.steps, self.knots, self.decay = steps, knots, decay
        check_choices(self, decay=get_args(Decay))
        check_ranges(self, "steps >= 2", "knots >= 1")

    def init_outer(self, generator: Generator) -> Tree:
        """Return the same learning rate at all knots, and the weight decay."""
        outer = super().init_outer(generator)
        return {**outer, "log_lr": outer["log_lr"].repeat(self.knots)}

    def inner_optimizer(self, outer: Tree, step: int) -> SGD:
        """Return SGD with momentum at the rate of this step."""
        return super().inner_optimizer({**outer, "log_lr": self.log_lr(outer, step)}, step)

    def log_lr(self, outer: Tree, step: int) -> Tensor:
        """Return the logarithm of the learning rate of a step, scalar."""
        step = min(step, self.steps - 1)  # a longer training is refused at its end, by `observe`
        place = step * (self.knots - 1) / (self.steps - 1)
        left = min(int(place), max(self.knots - 2, 0))
        knots = outer["log_lr"]
        between = torch.lerp(knots[left], knots[min(left + 1, self.knots - 1)], place - left)
        if self.decay == "none":
            return between
        return between + math.log((1 + math.cos(math.pi * step / self.steps)) / 2)

    def observe(self, outer: Tree, inner: GradientState, feedback: Feedback) -> GradientState:
        """Return the inner state; refuse a training that is not as long as the schedule."""
        if inner.step != self.steps:
            raise ValueError(
                f"ScheduledDigits spreads its learning rates over problem.steps={self.steps} inner "
                f"steps, and the estimator trains for {inner.step}: set both to the same number; "
                f"inner_steps={self.steps} alone does, where problem.steps is left at its default."
            )
        return inner

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return a model trained from scratch under the chosen schedule."""
        return loop.run(outer, loop.initial(outer, key), key, self.steps)

    def metrics(self, outer: Tree, inner: GradientState) -> dict[str, Tensor]:
        """Return loss and accuracy on test images, first and last learning rate, weight decay."""
        first, last = (self.log_lr(outer, step).exp() for step in (0, self.steps - 1))
        return {
            **super().metrics({**outer, "log_lr": first.log()}, inner),
            "validation_loss": self._loss(inner.params, self.validation),
            "lr_last": last,
        }
