"""The adaptive, first-order estimator for large models."""

from __future__ import annotations

from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.estimators.finite_difference import CentralDifference
from metaopt.estimators.one_step import take_step


class Sama(CentralDifference):
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

    Example:
        >>> from metaopt import Sama, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"sama": Sama()})
        >>> row.cosine > 0.95, row.error > 0.5
        (True, True)
    """

    direction_gradients = 1

    def direction(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, v: Tree, draw: Draw, batch: Batch
    ) -> Tree:
        """Return v through the inner optimizer's next step."""
        return take_step(loop, outer, inner, draw, batch)[2](v)[0]
