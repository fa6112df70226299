"""New models trained with what a run has learned, and with uniform weights; what that saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.problems.domain_reweighting.batches import Rows
from metaopt.problems.domain_reweighting.phases import fit, untrained
from metaopt.problems.domain_reweighting.rating import row_scores, top

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting

CURVE = 30
"""How often a metric is measured along a training that is followed."""

HVP = 2.5
"""What a product with second derivatives costs, in gradients of the same batch."""


def retrained(
    problem: DomainReweighting, outer: Tree, inner: GradientState, loop: InnerLoop, key: int
) -> GradientState:
    """Return a new model trained with the weights of phi, or on the examples that they keep."""
    steps = problem.retrain_steps or inner.step
    new = untrained(loop, problem.task, key)._replace(state=inner.state)
    if problem.retrain == "top" and problem.train_on != "meta":
        scores = row_scores(problem.weights, outer, problem.domain)
        assert scores is not None  # `check_options`
        best = top(scores, problem.export_keep).nonzero().flatten().cpu()

        def among(k: int, draw: Generator) -> Rows:
            return problem.sampler.among(best, draw, problem.batch)

        new, curve = _followed(problem, loop, new, among, steps, key, None)
    else:
        phi = problem.final_phi(outer, inner)
        new, curve = _followed(
            problem, loop, new, lambda k, g: problem.training_rows(g), steps, key, phi
        )
    return new._replace(state=new.state | ({} if curve is None else {"curve": curve}))


def uniform(
    problem: DomainReweighting, inner: GradientState, loop: InnerLoop, key: int
) -> dict[str, Any]:
    """Return the tensors of a new model trained with uniform weights, and what was followed."""
    steps = problem.retrain_steps or inner.step
    new, curve = _followed(
        problem, loop, untrained(loop, problem.task, key),
        lambda k, g: problem.sampler.even(g, problem.batch), steps, key, None,
    )  # fmt: skip
    state = {"uniform": new.params | new.buffers}
    return state if curve is None else state | {"uniform_curve": curve}


def _followed(
    problem: DomainReweighting, loop: InnerLoop, inner: GradientState, sample: Any, steps: int,
    key: int, outer: Tree | None,
) -> tuple[GradientState, Tensor | None]:  # fmt: skip
    """Return a model after training, and the followed metric at `CURVE` times, where one is."""
    name, values = problem.follow, []
    if name is None:
        return fit(loop, inner, sample, steps, key, outer), None

    def measure(k: int, inner: GradientState) -> None:
        if (k + 1) * CURVE % steps < CURVE:
            value = problem.task.metrics(inner.params | inner.buffers)[name]
            values.append(torch.as_tensor(value, dtype=torch.float64).mean())

    inner = fit(loop, inner, sample, steps, key, outer, measure)
    return inner, torch.stack(values)


def steps_to(curve: Tensor, target: Tensor, steps: int) -> float:
    """Return after how many of `steps` a followed metric is first at most `target`; inf if never.

    To the step of measurement.
    """
    reached = (curve <= target).nonzero()
    return int(reached[0] + 1) * steps / len(curve) if len(reached) else float("inf")


def savings(
    problem: DomainReweighting, inner: GradientState, spent: Mapping[str, float]
) -> dict[str, float]:
    """Return how soon the retrained model is as good as the uniform one is at its end.

    `steps_to_uniform`; `row_gradients`, what learning the weights has cost in gradients of the loss
    of one example, a second derivative counting 2.5; and `break_even`, the number of trainings
    after which that is saved. The first is missing where the model is never as good, and the last
    where no step is saved.

    Args:
        problem: whose.
        inner: the state at the end.
        spent: the cost of the outer steps and of a reference.
    """
    state = inner.state
    if "curve" not in state or "uniform_curve" not in state:
        return {}
    steps, target = problem.retrain_steps or inner.step, state["uniform_curve"][-1]
    reached = steps_to(state["curve"], target, steps)
    saved = (steps_to(state["uniform_curve"], target, steps) - reached) * problem.batch
    gradients = spent.get("gradients", 0.0) + HVP * spent.get("hvps", 0.0)
    cost = (problem.models_trained or 1) * problem.batch * gradients
    figures = {"row_gradients": cost}
    if math.isfinite(reached):
        figures["steps_to_uniform"] = reached
    if saved > 0:
        figures["break_even"] = cost / saved
    return figures
