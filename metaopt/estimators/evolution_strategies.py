"""Gradients from function values alone, for inner levels that one cannot differentiate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from metaopt.engine import distributed, tree
from metaopt.engine.across_ranks import shared_state
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_ranges
from metaopt.estimators.inner_run import InnerRun, check_run


class EvolutionStrategies(InnerRun):
    """(1 / pairs) sum_i eps_i [F(phi + eps_i) - F(phi - eps_i)] / (2 sigma^2), eps ~ N(0, sigma^2).

    F is what `problem.evaluate` says after K inner steps from the given state, under the same key
    for every evaluation (common random numbers). In expectation this is the gradient of F averaged
    over N(phi, sigma^2 I), exact for a quadratic F. Works for any problem whose outer variable is
    a dict of floating-point tensors. Scale: as `Unroll`; carries the inner learning rates.

    With `persistent`, each pair keeps its own two inner states from one outer step to the next, and
    eps_i in front of the bracket becomes the sum of its perturbations since the start: the effect
    of phi on the whole inner run, without truncation bias. The sums, and with them the variance,
    grow until the inner run ends (`Feedback.done`), which starts all particles again.

    Args:
        pairs: number of antithetic pairs per rank, >= 1; the standard error falls as its root.
        sigma: standard deviation of the perturbation, in the units of phi, > 0.
        inner_steps: number K of inner steps, >= 0.
        persistent: whether pairs keep their inner states (PES).

    Cost: 2 pairs + 1 inner runs, of K gradients each for a gradient problem, and as many
    evaluations; `persistent` keeps 2 pairs inner states.

    Where a gradient problem starts each run from `init_params` (`warm_start=False`), theta_0 is
    that of the perturbed phi. Trap: the start of a black box is held fixed.

    References: Nesterov and Spokoiny, Foundations of Computational Mathematics 2017 (the smoothed
    gradient); Vicol et al., Persistent Evolution Strategies, ICML 2021.

    Example:
        >>> from metaopt import EvolutionStrategies, check
        >>> from metaopt.problems.examples import Quadratic
        >>> strategies = EvolutionStrategies(pairs=64, inner_steps=5)
        >>> (row,) = check(Quadratic(), {"strategies": strategies})
        >>> row.cosine > 0.8
        True
    """

    stacks = True
    least_steps = 0
    memory = ("particles",)

    def __init__(
        self,
        pairs: int = 8,
        sigma: float = 0.1,
        inner_steps: int = 1,
        persistent: bool = False,
    ) -> None:
        super().__init__(inner_steps)
        self.pairs, self.sigma, self.persistent = pairs, sigma, persistent
        check_ranges(self, "pairs >= 1", "sigma > 0")
        self._particles: list[dict[str, Any]] = []

    def check(self, loop: BlackBoxLoop | InnerLoop) -> None:
        """Raise an error unless phi is named floating-point tensors; see `Score.check`.

        Raises:
            TypeError: it is anything else.
            ValueError: processes would keep particles of their own, of which a checkpoint has those
                of the first.
        """
        tree.named_tensors(loop.problem.init_outer(generator(0)), "EvolutionStrategies")
        if self.persistent and distributed.world_size() > distributed.share_of_batch()[1]:
            raise ValueError(
                "EvolutionStrategies(persistent=True) needs processes that perturb alike: start "
                "the command with ranks=split, or set persistent=false."
            )
        check_run(loop)

    def check_again(self, loop: Any, outer: Any, inner: Any, key: int) -> None:
        """Check nothing: no derivative is taken."""

    def estimate(
        self, loop: BlackBoxLoop | InnerLoop, outer: Tree, inner: Any, key: int
    ) -> tuple[Any, Feedback]:
        """Return the unperturbed inner state after K steps and the estimated gradient."""
        # A run that starts from scratch starts its particles from scratch as well.
        fresh = isinstance(inner, GradientState) and inner.step == 0
        particles = [] if fresh else self._particles
        grad, particles_after, costs = tree.zeros_like(outer), [], []
        for i in range(self.pairs):
            # Ranks with batches of their own perturb in other directions, too; the engine averages
            # their estimates.
            draw = fold(key, "perturbation", i, distributed.draw_rank())
            shift = tree.scale(tree.noise(outer, draw), self.sigma)
            ends = [tree.add(outer, shift, sign) for sign in (1.0, -1.0)]
            if particles:
                particle = particles[i]
                starts, total = [particle["plus"], particle["minus"]], particle["total"]
                total = tree.add(total, shift)
            else:
                starts, total = [_start(loop, end, inner, key) for end in ends], shift
            # One key for both ends and the centre: their noise cancels in the difference.
            plus, above = self._run(loop, ends[0], starts[0], key)
            minus, below = self._run(loop, ends[1], starts[1], key)
            gap = torch.as_tensor(above.value).detach() - torch.as_tensor(below.value).detach()
            slope = gap / (2 * self.sigma**2 * self.pairs)
            grad = tree.add(grad, total, slope.to(next(iter(outer.values()))))
            costs += [above.cost, below.cost]
            if self.persistent:
                kept = {"plus": shared_state(plus), "minus": shared_state(minus)}
                particles_after.append({**kept, "total": total})
        inner, feedback = self._run(loop, outer, inner, key)
        self._particles = [] if feedback.done else particles_after
        cost = self._cost(loop, [*costs, feedback.cost])
        return inner, dataclasses.replace(feedback, grad=grad, cost=cost)

    def _run(
        self, loop: BlackBoxLoop | InnerLoop, outer: Tree, inner: Any, key: int
    ) -> tuple[Any, Feedback]:
        inner = loop.run(outer, inner, key, self.inner_steps)
        return inner, loop.evaluate(outer, inner, key)

    def _cost(
        self, loop: BlackBoxLoop | InnerLoop, costs: list[Mapping[str, float]]
    ) -> dict[str, float]:
        """Return what the runs cost in addition to what the problem charged for them."""
        steps = float(len(costs) * self.inner_steps)
        total = {"inner_steps": steps, "evaluations": len(costs)}
        if isinstance(loop, InnerLoop):  # a black box charges its own steps
            total["gradients"] = steps
        for cost in costs:
            for unit, amount in cost.items():
                total[unit] = total.get(unit, 0) + amount
        return total


def _start(loop: BlackBoxLoop | InnerLoop, outer: Tree, inner: Any, key: int) -> Any:
    """Return where the run of a perturbed phi starts: at its own theta_0, or where `inner` is."""
    if isinstance(loop, InnerLoop) and not loop.problem.warm_start:
        return loop.start(outer, None, key)
    return tree.clone(inner)  # cloned, since a run modifies its state in place
