"""The penalty method: two inner copies and first derivatives only."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.held_fixed import Held
from metaopt.estimators.inner_run import InnerRun, Result, largest


class Penalty(InnerRun):
    """dF/dphi(phi, y) + gamma [dg/dphi(phi, y) - dg/dphi(phi, z)].

    z minimises g and is the problem's inner state; y minimises F + gamma g and is kept here, with
    an optimizer state of its own. Both take K steps per outer step on the same batches, y along
    the gradient of (F + gamma g) / (1 + gamma) so that one learning rate suits every gamma. With
    both at their minima this tends to the hypergradient as gamma grows, with an error of order
    1 / gamma. Scale: free of the inner learning rate. The reported value is F(phi, z).

    gamma_t = min(strength, initial * growth^t) at outer step t.

    Args:
        strength: largest gamma, > 0.
        initial: gamma at the first outer step, 0 < initial <= strength.
        growth: factor per outer step, >= 1.
        inner_steps: number K of inner steps, >= 1.

    Cost: 3 K + 3 gradients and one evaluation of F; memory for a second inner state.

    With weight decay in the inner optimizer, z minimises g + r and y minimises F + gamma (g + r),
    r = (weight_decay / 2) |theta|^2.

    Traps: at a small gamma the result is dominated by F along y, not by the hypergradient; at a
    large one, gamma amplifies the noise and the inner error of both copies.

    References: Kwon et al., F2SA, ICML 2023; Shen and Chen, PBGD, ICML 2023; Liu et al., BOME,
    NeurIPS 2022; Pan et al., ScaleBiO, arXiv 2406.19976, 2024.

    Example:
        >>> from metaopt import Penalty, check
        >>> from metaopt.problems.examples import Quadratic
        >>> penalty = Penalty(strength=1000.0, initial=1000.0, inner_steps=20)
        >>> (row,) = check(Quadratic(), {"penalty": penalty})
        >>> row.error < 0.1
        True
    """

    stacks = True
    needs_stationarity = True
    needs_precision = ("theta", "phi")
    memory = ("copy", "gamma")

    def __init__(
        self,
        strength: float = 10.0,
        initial: float = 0.1,
        growth: float = 1.03,
        inner_steps: int = 1,
    ) -> None:
        super().__init__(inner_steps)
        self.strength, self.initial, self.growth = strength, initial, growth
        check_ranges(self, "0 < initial <= strength", "growth >= 1")
        self._copy: GradientState | None = None
        self._gamma = initial

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return z after K steps and the penalised gradient in phi."""
        y, gamma = self._copy, self._gamma
        if y is None or inner.step == 0:
            y = tree.clone(inner)  # both are stepped in place from here on
        inner = loop.run(outer, inner, key, self.inner_steps)
        for k in loop.progress.track(range(self.inner_steps), "penalised inner step"):
            y = _penalised_step(loop, outer, y, key, k, gamma)
        held = self.held(loop, y)
        grad = _outer_slope(loop, outer, held, inner, key, self.inner_steps, gamma)
        self._copy, self._gamma = y, min(self.strength, gamma * self.growth)
        return self.result(
            inner, loop.evaluate(outer, inner, key).value, grad, {"outer/penalty": gamma},
            inner_steps=2 * self.inner_steps, gradients=3 * self.inner_steps + 3, evaluations=1,
        )  # fmt: skip

    def divergence(self, feedback: Feedback) -> str:
        """Return a clause that names what diverged, or nothing, for feedback that is not finite."""
        loss = largest(feedback.metrics["inner/loss"])
        if self._copy is None or largest(self._copy.loss) < 1e3 * loss:
            return super().divergence(feedback)
        return (
            f": Penalty's copy y has diverged at gamma="
            f"{feedback.metrics['outer/penalty']:.3g}; the inner learning rate is too large for "
            f"(F + gamma g) / (1 + gamma): lower it, or raise estimator.initial where it suits g "
            f"and not F"
        )


def _penalised_step(
    loop: InnerLoop, outer: Tree, y: GradientState, key: int, k: int, gamma: float
) -> GradientState:
    """Return y after one step along the gradient of (F + gamma g) / (1 + gamma)."""
    outer, theta = tree.detach(outer), tree.leaves(y.params)
    at = y._replace(params=theta)
    top = loop.outer_value(outer, at, loop.outer_draw(y, key, k))
    loss = (top + gamma * loop.inner_value(outer, at, loop.draw(y, key, k))) / (1 + gamma)
    grads = tree.like(theta, vjp([tree.total(loss)], [*theta.values()]))
    with torch.no_grad():
        rest = loop.optimizer(outer, y.step).stationary_gradient(theta, grads)
        if rest is not grads:
            # The optimizer adds the whole of dr/dtheta; its share here is gamma / (1 + gamma).
            grads = tree.add(grads, tree.add(rest, grads, -1.0), -1.0 / (1 + gamma))
    return loop.step_along(outer, y, grads, loss)


def _outer_slope(
    loop: InnerLoop, outer: Tree, held: Held, z: GradientState, key: int, steps: int, gamma: float
) -> Tree:
    """Return the derivative in phi of F(phi, y) + gamma [g(phi, y) - g(phi, z)], y held fixed."""
    # One batch and one mask for both: what is the same in g(y) and g(z) cancels without noise.
    phi, y, draw = tree.leaves(outer), held.inner, loop.solve_draw(z, key, steps)
    batch = loop.batch(phi, z.at(z.params), draw)

    def inner_loss(state: GradientState) -> Tensor:
        return loop.inner_value(phi, state.at(state.params), draw, batch)

    with held.block():
        top, bottom = loop.outer_value(phi, y, loop.outer_draw(y, key)), inner_loss(y)
    held.refuse_read("outer_loss", top)
    held.refuse_read("inner_loss", bottom)
    loss = top + gamma * (bottom - inner_loss(z))
    return tree.gradient(loss, phi)[0]
