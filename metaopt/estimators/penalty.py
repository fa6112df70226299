"""The penalty method: two inner copies and first derivatives only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.across_ranks import shared_state
from metaopt.engine.derivatives import vjp
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.schedules import Schedule
from metaopt.estimators.held_fixed import Held
from metaopt.estimators.inner_run import InnerRun, Result, largest


class Penalty(InnerRun):
    """dF/dphi(phi, y) + gamma [dg/dphi(phi, y) - dg/dphi(phi, z)].

    z minimises g and is the problem's inner state; y minimises F + gamma g and is kept here, with
    an optimizer state of its own. Both take K steps per outer step on the same batches, y along
    the gradient of (F + gamma g) / (1 + gamma) so that one learning rate suits every gamma. With
    both at their minima this tends to the hypergradient as gamma grows, with an error of order
    1 / gamma. Scale: free of the inner learning rate. The reported value is F(phi, z).

    gamma starts at `initial`; after outer step t = 0, 1, ... it is
    min(strength, growth * gamma + increment * increment_schedule(t)).

    F2SA, as benchmark_bilevel sets it, is growth=1, strength=None, increment=0.01 and
    PowerDecay(1/7) for both schedules, with PowerDecay(4/7, every=K) of the inner optimizer and
    PowerDecay(4/7) of the outer one: z and phi then have the rates t^(-4/7), y has t^(-5/7) along
    F + gamma g, and gamma grows as t^(6/7).

    Args:
        strength: largest gamma, >= initial, or `None` for no limit.
        initial: gamma at the first outer step, > 0.
        growth: factor per outer step, >= 1.
        inner_steps: number K of inner steps, >= 1.
        increment: what is added per outer step, >= 0.
        increment_schedule: factor on it by outer step, or `None`.
        copy_schedule: y follows F + gamma g itself, times this factor by outer step, instead of
            (F + gamma g) / (1 + gamma).

    Cost: 3 K + 3 gradients and one evaluation of F; memory for a second inner state.

    With weight decay in the inner optimizer, z minimises g + r and y minimises F + gamma (g + r),
    r = (weight_decay / 2) |theta|^2.

    Traps: at a small gamma the result is dominated by F along y, not by the hypergradient; at a
    large one, gamma amplifies the noise and the inner error of both copies.

    References: Kwon et al., A fully first-order method for stochastic bilevel optimization (F2SA),
    ICML 2023; Shen and Chen, PBGD, ICML 2023; Liu et al., BOME, NeurIPS 2022; Pan et al., ScaleBiO,
    arXiv 2406.19976, 2024.

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
        strength: float | None = 10.0,
        initial: float = 0.1,
        growth: float = 1.03,
        inner_steps: int = 1,
        increment: float = 0.0,
        increment_schedule: Schedule | None = None,
        copy_schedule: Schedule | None = None,
    ) -> None:
        super().__init__(inner_steps)
        self.strength, self.initial, self.growth = strength, initial, growth
        self.increment, self.increment_schedule = increment, increment_schedule
        self.copy_schedule = copy_schedule
        check_ranges(
            self, "initial > 0", "strength >= initial or null", "growth >= 1", "increment >= 0",
            "increment_schedule or null", "copy_schedule or null",
        )  # fmt: skip
        self._copy: GradientState | None = None
        self._gamma = initial

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return z after K steps and the penalised gradient in phi."""
        y, gamma = self._copy, self._gamma
        if y is None or inner.step == 0:
            y = tree.clone(inner)  # both are stepped in place from here on
        inner = loop.run(outer, inner, key, self.inner_steps)
        t = loop.outer_step
        factor = None if self.copy_schedule is None else self.copy_schedule(t)
        for k in loop.progress.track(range(self.inner_steps), "penalised inner step"):
            y = _penalised_step(loop, outer, y, key, k, gamma, factor)
        held = self.held(loop, y)
        grad = _outer_slope(loop, outer, held, inner, key, self.inner_steps, gamma)
        self._copy, self._gamma = shared_state(y), self._grown(gamma, t)
        return self.result(
            inner, loop.evaluate(outer, inner, key).value, grad, {"outer/penalty": gamma},
            inner_steps=2 * self.inner_steps, gradients=3 * self.inner_steps + 3, evaluations=1,
        )  # fmt: skip

    def _grown(self, gamma: float, step: int) -> float:
        """Return gamma after the outer step that `step` others precede."""
        factor = 1.0 if self.increment_schedule is None else self.increment_schedule(step)
        grown = gamma * self.growth + self.increment * factor
        return grown if self.strength is None else min(self.strength, grown)

    def divergence(self, feedback: Feedback) -> str:
        """Return a clause that names what diverged, or nothing, for feedback that is not finite."""
        loss = largest(feedback.metrics["inner/loss"])
        if self._copy is None or largest(self._copy.loss) < 1e3 * loss:
            return super().divergence(feedback)
        summed = "(F + gamma g) / (1 + gamma)"
        smaller = "raise estimator.initial where it suits g and not F"
        if self.copy_schedule is not None:
            summed, smaller = "F + gamma g", "lower estimator.initial or estimator.increment"
        return (
            f": Penalty's copy y has diverged at gamma="
            f"{feedback.metrics['outer/penalty']:.3g}; the inner learning rate is too large for "
            f"{summed}: lower it, or {smaller}"
        )


def _penalised_step(
    loop: InnerLoop, outer: Tree, y: GradientState, key: int, k: int, gamma: float,
    factor: float | None,
) -> GradientState:  # fmt: skip
    """Return y after one step along the gradient of (F + gamma g) / (1 + gamma), or by a factor."""

    def scaled(total: Any) -> Any:
        return total / (1 + gamma) if factor is None else total * factor

    outer, theta = tree.detach(outer), tree.leaves(y.params)
    at = y._replace(params=theta)
    top = loop.outer_value(outer, at, loop.outer_draw(y, key, k))
    loss = scaled(top + gamma * loop.inner_value(outer, at, loop.draw(y, key, k)))
    grads = tree.like(theta, vjp([tree.total(loss)], [*theta.values()]))
    with torch.no_grad():
        rest = loop.optimizer(outer, y.step).stationary_gradient(theta, grads)
        if rest is not grads:
            # The optimizer adds the whole of dr/dtheta; its share here is that of g.
            grads = tree.add(grads, tree.add(rest, grads, -1.0), scaled(gamma) - 1.0)
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
