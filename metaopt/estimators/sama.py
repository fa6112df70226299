"""The adaptive, first-order estimator for large models."""

from __future__ import annotations

from metaopt.engine.inner import Batch, GradientProblem, GradientState, require_gradients
from metaopt.engine.protocols import Feedback, Tree
from metaopt.estimators.finite_difference import check_radius, difference
from metaopt.estimators.one_step import take_step
from metaopt.estimators.stateless import Stateless


class Sama(Stateless):
    """dF/dphi - J^T w with w = -(du/dgrad)^T v, by a central difference along w.

    v = dF/dtheta and J = d2g/dtheta dphi at the theta that K inner steps reach; u(theta, grad) is
    the step that the inner optimizer would take next, so that its moments and bias correction
    shape w (a diagonal for Adam, the learning rate for SGD). This is implicit differentiation of
    the fixed point theta = u(theta, dg/dtheta) with the identity for the inverse. Scale: carries
    the inner learning rate.

    Args:
        epsilon: radius relative to the parameters; see `FiniteDifference`.
        inner_steps: number K of inner steps before the difference, >= 0.

    Cost: K + 2 gradients and 3 evaluations of g, two of them with a gradient in phi.

    Trap: Adam's du/dgrad is close to lr / |grad| in its first steps and where gradients vanish;
    a few inner steps before the first hypergradient tame it.

    Reference: Choe et al., Making Scalable Meta Learning Practical, NeurIPS 2023.
    """

    def __init__(self, epsilon: float | None = None, inner_steps: int = 1) -> None:
        check_radius(epsilon, inner_steps, "Sama")
        self.epsilon, self.inner_steps = epsilon, inner_steps

    def __call__(
        self, problem: GradientProblem, outer: Tree, inner: GradientState, key: int
    ) -> tuple[GradientState, Feedback]:
        """Return the inner state after K steps and the hypergradient there."""
        require_gradients(problem, "Sama")

        def adapted(inner: GradientState, v: Tree, key: int, batch: Batch) -> Tree:
            return take_step(problem, outer, inner, key, batch)[2](v)

        return difference(problem, outer, inner, key, self.inner_steps, self.epsilon, adapted)
