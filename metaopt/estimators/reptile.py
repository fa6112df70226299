"""Meta-learning of an initial value by moving it towards where the inner level ends."""

from __future__ import annotations

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.meta_batch import MetaBatch
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator, replay
from metaopt.estimators.first_order import check_fork
from metaopt.estimators.inner_run import Result, require_gradients
from metaopt.estimators.path_check import Start
from metaopt.estimators.task_average import TaskAverage


class Reptile(TaskAverage):
    """phi - theta', when theta starts as a copy of phi and K inner steps end at theta'.

    Descent with plain SGD at rate r is phi <- phi + r (theta' - phi), the average over tasks. It is
    no derivative of F: to leading order it is that of the mean inner loss, and of how well its
    gradients agree between batches. F is evaluated at theta' and never differentiated.
    Scale: carries the inner learning rate and K.

    Args:
        inner_steps: number K of inner steps, >= 1; with one, plain joint training on all tasks.
        tasks: number B of tasks that are averaged, >= 1; see `Unroll`.

    Cost: K gradients and one evaluation of F for each task.

    Raises:
        ValueError: from `check`, the problem starts warm, theta_0 is not phi, or F reads phi
            itself, whose derivative would be missing.
        TypeError: from `check`, a parameter of theta has no namesake of its shape in phi.

    Reference: Nichol, Achiam and Schulman, On first-order meta-learning algorithms,
    arXiv 1803.02999, 2018.

    Example:
        >>> import torch
        >>> from metaopt import SGD, Descent, GradientProblem, run
        >>> from metaopt.estimators import Reptile
        >>> class Adaptation(GradientProblem):
        ...     inner_optimizer, warm_start = SGD(lr=0.1), False
        ...     init_outer = lambda self, generator: {"x": torch.ones(1)}
        ...     init_params = lambda self, outer, generator: dict(outer)
        ...     inner_batch = outer_batch = lambda self, draw: None
        ...     inner_loss = outer_loss = lambda self, phi, theta, batch: theta["x"].square().sum()
        >>> run(Adaptation(), Reptile(3), Descent(lr=0.5), 20, progress=False).outer["x"] < 0.05
        tensor([True])
    """

    carries_start = True  # in this approximation
    carries_state = True  # nothing of F is differentiated
    misses_buffers_of = ()
    differentiates_inner = False

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        require_gradients(loop, "Reptile", self.differentiates_inner)
        check_fork(loop, "Reptile")
        super().check(loop)
        with replay(0):
            self._check_phi(loop)
            start = Start.of(loop, tree.detach(loop.initial_outer(0)), 0)
            value = loop.outer_value(start.phi, start.inner, loop.outer_draw(start.inner, 0))
        if tree.reached(value, start.phi):
            raise ValueError(
                f"Reptile never differentiates outer_loss, and that of "
                f"{type(loop.problem).__name__} reads the outer variable itself: its derivative "
                f"would be missing. Use estimator=first_order or unroll."
            )

    def _check_phi(self, loop: InnerLoop) -> None:
        outer = loop.problem.init_outer(generator(0))
        rest = [name for name in outer if name not in loop.initial(outer, 0).params]
        if rest:
            raise TypeError(
                f"Reptile moves phi towards the adapted parameters, and {rest[0]!r} of the outer "
                f"variable of {type(loop.problem).__name__} is none of them. Use estimator=unroll."
            )

    def one(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the adapted state and how far phi is from it, the mean over tasks."""
        inner = loop.run(outer, inner, key, self.inner_steps)
        count = loop.tasks if isinstance(loop, MetaBatch) else 1
        grad = tree.add(outer, loop.total(inner.params), -1.0 / count)
        value = loop.evaluate(outer, inner, key).value
        return self.result(inner, value, grad, gradients=self.inner_steps, evaluations=1)
