"""The direct gradient dF/dphi at fixed theta."""

from __future__ import annotations

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.estimators.inner_run import InnerRun, Result


class Direct(InnerRun):
    """The partial derivative dF/dphi at the theta that K inner steps reach; theta is held fixed.

    Exact where phi does not move the inner minimum, or where the method is defined so: the ascent
    of group DRO and of DoReMi on weighted losses. Zero where F does not contain phi, so that a
    gradient optimizer keeps phi where it starts: a control with fixed weights, on the same loop
    and for the price of the inner level.

    Args:
        inner_steps: number K of inner steps, >= 0.

    Cost: K gradients and one evaluation of F, with a reverse pass only through what depends on phi.

    Reference: Sagawa et al., group DRO, ICLR 2020.

    Example:
        >>> from metaopt import Direct, check
        >>> from metaopt.problems.examples import Quadratic
        >>> (row,) = check(Quadratic(), {"direct": Direct()})
        >>> row.cosine  # F holds phi only as rho |phi|^2 / 2, and phi starts at 0
        0.0
    """

    stacks = True
    least_steps = 0
    carries_state = True  # theta, the state and buffers are held fixed
    carries_optimizer = True  # the same
    misses_buffers_of = ()
    differentiates_inner = False

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the inner state after K steps and the partial derivative there."""
        inner = loop.run(outer, inner, key, self.inner_steps)
        phi = tree.leaves(outer)
        value = loop.outer_value(phi, inner, loop.outer_draw(inner, key))
        (grad,) = tree.gradient(value, phi)
        return self.result(inner, value.detach(), grad, gradients=self.inner_steps, evaluations=1)
