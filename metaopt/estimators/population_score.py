"""Run and measure the members of a population, which are trained together."""

from __future__ import annotations

from typing import Any

import torch

from metaopt.engine import distributed, tree
from metaopt.engine.across_ranks import shared_state
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.population import Members, Population, best_member, member_keys
from metaopt.engine.protocols import BilevelProblem, Feedback
from metaopt.engine.random import generator
from metaopt.estimators.score import Score


class PopulationScore(Score):
    """No gradient: K inner steps of each of P members, and F(phi_i, theta_i) of each.

    The members (`metaopt.engine.population.Members`, as `PopulationBased` asks for them) are
    trained in one batch by `torch.func.vmap`, each with its own theta_0, its own batches and its
    own moments. Member i goes on from the inner state that member `parents[i]` has reached. All are
    measured on the same outer batch.

    The feedback has F of the best member as its value and those of all, (P,), as
    `artifacts["values"]`, where NaN is +inf; a member whose F is not finite has diverged, and
    `population/diverged` counts them. The inner state that is returned is the best member's, which
    belongs to the optimizer's `solution`. Where one outer variable is asked for, this is `Score`.

    Args:
        inner_steps: number K of inner steps, >= 1.

    Raises:
        TypeError: from `check`, a problem without losses, or a phi that is not named tensors.
        ValueError: from `check`, members that would not go on from where they were
            (`warm_start=False`), that cannot be trained together (dropout), or whose problem notes
            the feedback of each step.

    Cost: P K gradients and P evaluations; P inner states are kept.

    Example:
        >>> from metaopt import Uniform, run
        >>> from metaopt.estimators import PopulationScore
        >>> from metaopt.optimizers import PopulationBased
        >>> from metaopt.problems.examples import Ridge
        >>> search = PopulationBased(members=10, space=Uniform(-6.0, 1.0))
        >>> result = run(Ridge(), PopulationScore(inner_steps=5), search, 10, progress=False)
        >>> int(result.budget["gradients"])
        500
    """

    least_steps = 1
    takes_members = True
    memory = ("states",)

    def __init__(self, inner_steps: int = 1) -> None:
        super().__init__(inner_steps)
        self._states: GradientState | None = None
        self._population: Population | None = None

    def check(self, loop: BlackBoxLoop | InnerLoop) -> None:
        """Raise an error where members cannot be trained together, or start over at each step."""
        name, problem = type(self).__name__, loop.problem
        kind = type(problem).__name__
        if not isinstance(loop, InnerLoop):
            raise TypeError(
                f"{name} trains the members of a GradientProblem together; {kind} steps and "
                f"evaluates itself. Use estimator=score with optimizer=search, random or grid."
            )
        if not loop.problem.warm_start:
            raise ValueError(
                f"{name} goes on from the inner state of each member, and {kind} starts each outer "
                f"step from init_params (warm_start=False). Set it to True, or use "
                f"estimator=score with optimizer=search, random or grid."
            )
        if type(problem).observe is not BilevelProblem.observe:
            raise ValueError(
                f"{kind}.observe notes the feedback on one outer variable, and {name} has one for "
                f"each member. Use an estimator with a hypergradient, or estimator=score."
            )
        tree.named_tensors(problem.init_outer(generator(0)), name)
        super().check(loop)
        Population(loop.problem, 2).check()

    def estimate(self, loop: Any, outer: Any, inner: Any, key: int) -> tuple[Any, Feedback]:
        """Return the best member's inner state after K steps, and F of all members."""
        if not isinstance(outer, Members):
            return super().estimate(loop, outer, inner, key)
        together, keys = self._together(loop, outer.size), member_keys(key, outer.size)
        with tree.replicated():
            if self._states is None or not inner.step:  # a new run
                states = together.start(outer.outer, None, keys)
            else:
                states = together.inherited(self._states, outer.parents)
            states = shared_state(together.run(outer.outer, states, keys, self.inner_steps))
            values = together.values(outer.outer, states, key)
        # Before one is the best, which would be another one on each rank.
        values = distributed.mean({"values": values.detach()})["values"]
        ranked = torch.where(values.isnan(), torch.inf, values)
        best = best_member(ranked)
        self._states = states
        inner = tree.clone(together.member(states, best))
        metrics = {
            "inner/loss": inner.loss,
            "population/median": ranked.median(),
            "population/diverged": (~values.isfinite()).sum(),
            "population/copied": outer.copied().sum(),
            **{f"population/{k}": v for k, v in outer.of(best).items() if v.numel() == 1},
        }
        steps = outer.size * self.inner_steps
        cost = {"inner_steps": steps, "gradients": steps, "evaluations": outer.size}
        # The value itself, so that the run stops where all of them are NaN.
        return inner, Feedback(
            values[best], artifacts={"values": ranked}, metrics=metrics, cost=cost
        )

    def _together(self, loop: InnerLoop, size: int) -> Population:
        """Return the loop of all members, at the outer step of the loop of one."""
        together = self._population
        if together is None or together.problem is not loop.problem or together.size != size:
            together = self._population = Population(loop.problem, size)
        together.outer_step, together.progress = loop.outer_step, loop.progress
        return together
