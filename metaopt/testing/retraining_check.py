"""The linear datamodeling score: predicted effects of training examples against retraining."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.example_weights import ExampleWeighted, check_examples, example_losses
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.inner_optimizers import Adam
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.leaving_out import Drawn, WeightedTraining, draw_subsets
from metaopt.engine.random import fold, generator
from metaopt.estimators.inner_run import require_gradients
from metaopt.estimators.unroll import Unroll
from metaopt.metrics.rank_correlation import spearman, spearman_interval
from metaopt.testing.counterfactual import (
    ALIGNMENT,
    FAITHFUL,
    FOR_CLAIMS,
    GRADIENTS,
    Counterfactual,
    Score,
)
from metaopt.testing.precision import failure, float64_loop, short
from metaopt.testing.smoothness import metasmoothness

FEWEST = 20
"""Retrainings below which there is no score."""

PROBES = 4
"""Subsets whose smoothness is measured."""

RADII = (1e-5, 1e-7, 1e-3, 3e-2)
"""Steps of the weights in the differences that the gradient is compared with.

Short ones for kinks, long ones for coarse numbers.
"""

GRADIENT_RUNS = 4
"""What a gradient through a run costs at most, in runs without a graph."""

PART = 256
"""Examples whose gradients are projected at once."""


def check_retraining(
    problem: GradientProblem,
    steps: int,
    *,
    retrainings: int = 100,
    leave: float = 0.01,
    subsets: Drawn = "auto",
    attributions: Mapping[str, Tensor] | None = None,
    gradient: bool = True,
    key: int = 0,
    say: Callable[[str], object] = lambda line: None,
) -> Counterfactual:
    """Compare what attributions predict of training without some examples with that training.

    The linear datamodeling score (LDS). Subset S_j is left out by weights of 0 in the inner loss
    mean_b w_b l_b, which is over all B examples of a batch: not divided by the sum of weights.
    Start, batches and masks stay. Truth d_j = F(theta_K(w with S_j = 0)) - F(theta_K(1));
    prediction -sum over S_j of g_i with g_i = dF/dw_i at w = 1 through all K steps; the score is
    Spearman's correlation over j. All in float64 where the problem allows.

        found = check_retraining(problem, steps=64, leave=0.025)
        print(found.scores["row gradients"], found.smoothness)

    For a column of a table of methods, learned weights of a run alone:

        weights = problem.learned_weights(result.outer, result.inner)
        found = check_retraining(
            problem, 64, attributions={"learned weights": weights - 1}, gradient=False
        )
        found.scores["learned weights"].lds

    Args:
        problem: with the names of `metaopt.engine.example_weights.ExampleLosses`.
        steps: K, the inner steps of a training, >= 1.
        retrainings: number m of subsets, >= 20; claims of 0.98 need 100.
        leave: size of a subset as a share of the examples, in (0, 1); 0.5 keeps random halves.
        subsets: disjoint, random, or auto: disjoint where the examples suffice.
        attributions: by name, what leaving out each example is said to add to F, (n,) each, up to
            any factor > 0.
        gradient: whether to take the gradient, its smoothness and the baseline.
        key: the seed of the run.
        say: gets a line about the cost before it is spent.

    Cost: m + 1 trainings without a graph; for the gradient 8 more and one of 2.5 to 4.

    Raises:
        TypeError: the problem has no gradients, or does not say what its examples are.
        ValueError: an argument out of range, an example whose loss depends on others of its batch,
            or retraining that changes nothing or diverges.

    References: Park et al., TRAK, ICML 2023 (the score); Engstrom et al., Optimizing ML Training
    with Metagradient Descent, arXiv 2503.13751, 2025 (smoothness).
    """
    if retrainings < FEWEST:
        raise ValueError(
            f"retrainings={retrainings} are too few for a rank correlation; take at least "
            f"{FEWEST}, and {FOR_CLAIMS} for claims of 0.98."
        )
    if steps < 1:
        raise ValueError(f"steps must be >= 1; got {steps}.")
    require_gradients(loop_of(problem), "check_retraining", through_decisions=False)
    began = time.monotonic()
    loop = _weighted(problem, key)
    count = loop.problem.count  # type: ignore[attr-defined]
    left_out = draw_subsets(count, retrainings, leave, subsets, key)
    given = _checked(attributions or {}, count)
    note = check_examples(loop, fold(key, 0))
    training = WeightedTraining(loop, steps, key)
    say(_cost(training, left_out, gradient))
    ones = torch.ones(1, count, dtype=torch.float64)
    values, _ = training(torch.cat([ones, ones - left_out.double()]))
    trainings = 1 + retrainings
    changes = values[1:] - values[0]
    _refuse_useless(values, changes, steps)
    effects, smoothness, error, missing = given, None, None, ""
    if gradient:
        effects, missing = _gradients(training)
        if not missing:
            smoothness = _smoothness(training, left_out[:PROBES])
            error, runs = _difference_error(training, -effects[GRADIENTS])
            trainings += runs + 1 + 2 * PROBES
        effects = effects | given
    scores = {k: _score(v, left_out, changes) for k, v in effects.items()}
    return Counterfactual(
        steps, count, _never_drawn(loop, training), left_out, _words(left_out),
        float(values[0]), changes, effects, scores, smoothness, error, missing,
        short(training.ones.dtype), training.alone or "stacked", trainings,
        time.monotonic() - began, isinstance(loop.optimizer({"weights": training.ones}, 0), Adam),
        note,
    )  # fmt: skip


def trained_value(problem: GradientProblem, steps: int, key: int) -> float:
    """Return F after K steps on all examples, what `check_retraining` compares others with."""
    training = WeightedTraining(_weighted(problem, key), steps, key)
    return float(training(training.ones[None])[0])


def _weighted(problem: GradientProblem, key: int) -> InnerLoop:
    """Return the loop of the problem with a weight for each example, in float64 if it can."""
    base = float64_loop(problem)[0]
    return InnerLoop(ExampleWeighted(base.problem, base.initial_outer(fold(key, "outer"))))


def _checked(attributions: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    checked = {}
    for name, values in attributions.items():
        values = torch.as_tensor(values).detach().double().cpu()
        if values.shape != (count,) or not bool(values.isfinite().all()):
            raise ValueError(
                f"attributions[{name!r}] must be {count} finite numbers, one for each training "
                f"example; got shape {tuple(values.shape)}."
            )
        checked[name] = values
    return checked


def _words(subsets: Tensor) -> str:
    count, n = subsets.shape
    size = int(subsets[0].sum())
    disjoint = bool((subsets.sum(0) <= 1).all())
    kind = "disjoint subsets" if disjoint and count > 1 else "random subsets"
    return f"{count} {kind} of {size} of {n} examples ({100 * size / n:.3g} %) left out"


def _cost(training: WeightedTraining, subsets: Tensor, gradient: bool) -> str:
    """Return what is about to be computed, and about how long it takes."""
    few = min(training.steps, 3)
    ones = torch.ones(min(len(subsets), max(1, training.together)), subsets.shape[1])
    took = []
    for _ in range(2):  # the first one is slower
        began = time.perf_counter()
        training(ones, few)
        took.append(time.perf_counter() - began)
    each = took[1] / few * training.steps / len(ones)
    one = each
    if gradient and len(ones) > 1:
        began = time.perf_counter()
        training(ones[:1], few)
        one = (time.perf_counter() - began) / few * training.steps
    single = GRADIENT_RUNS * one if gradient else 0.0
    count = 1 + len(subsets) + (1 + 2 * PROBES + 4 if gradient else 0)
    how = "stacked" if training.together > 1 else f"one after another: {training.alone}"
    parts = f"{count} trainings of {training.steps} inner steps ({how})"
    if gradient:
        parts += f" and a gradient at the cost of up to {GRADIENT_RUNS}"
    return f"{_words(subsets)}: {parts}, about {max(1, count * each + single):.0f} s"


def _refuse_useless(values: Tensor, changes: Tensor, steps: int) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"F is not finite after {steps} inner steps in {int((~values.isfinite()).sum())} of "
            f"{len(values)} trainings: training diverges. Take a smaller inner learning rate."
        )
    if not bool(changes.any()):
        raise ValueError(
            f"F is the same without any of the subsets: no example that was left out is in one of "
            f"the {steps} batches, or F does not depend on training. Take more steps, or a larger "
            f"share to leave out."
        )


def _gradients(training: WeightedTraining) -> tuple[dict[str, Tensor], str]:
    """Return the effects by gradient and by alignment, and why there are none."""
    loop, outer = training.loop, {"weights": training.ones}
    try:
        unroll = Unroll(training.steps)
        unroll.check(loop)
        end, feedback = unroll(loop, outer, training.start(), training.key)
    except (ValueError, TypeError, RuntimeError) as error:
        return {}, failure(error)
    if feedback.grad is None or not bool(feedback.grad["weights"].isfinite().all()):
        return {}, "the gradient is not finite: the adjoint overflows. Take a smaller learning rate"
    aligned = _alignments(training, end)
    gradient = feedback.grad["weights"].detach().double().cpu()
    return {GRADIENTS: -gradient, ALIGNMENT: aligned}, ""


def _alignments(training: WeightedTraining, end: GradientState) -> Tensor:
    """Return <dF/dtheta, dl_i/dtheta> of all examples at the end of training, (n,)."""
    loop, outer = training.loop, {"weights": training.ones}
    params = tree.leaves(end.params)
    parts = []
    with twice_differentiable(), torch.enable_grad():
        value = loop.outer_value(outer, end.at(params), loop.outer_draw(end, training.key))
        (slope,) = tree.gradient(value, params)
        for examples in torch.arange(len(training.ones)).split(PART):
            losses = example_losses(loop, outer, params, end, examples, training.key)
            # <slope, sum_i w_i dl_i/dtheta> is linear in w: its derivative has all products.
            weights = torch.ones_like(losses, requires_grad=True)
            grads = torch.autograd.grad(
                (weights * losses).sum(), list(params.values()), create_graph=True,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            product = tree.dot(tree.detach(slope), tree.like(params, grads))
            (each,) = torch.autograd.grad(product, weights)
            parts.append(each.flatten(0, -2).sum(0) if each.ndim > 1 else each)
    return torch.cat(parts).detach().double().cpu()


def _smoothness(training: WeightedTraining, subsets: Tensor) -> float:
    """Return the mean S over leaving out subsets in two equal steps of their weights."""
    ones, out = torch.ones(1, subsets.shape[1], dtype=torch.float64), subsets.double()
    models = training(torch.cat([ones, ones - out / 2, ones - out]))[1]
    first, halves, gone = models[0], models[1 : 1 + len(out)], models[1 + len(out) :]
    return float(np.mean([metasmoothness(first, a, b) for a, b in zip(halves, gone, strict=True)]))


def _difference_error(training: WeightedTraining, gradient: Tensor) -> tuple[float, int]:
    """Return the relative error of a gradient from central differences, and their trainings."""
    draw = generator(fold(training.key, "differences"))
    size = 0.5 + torch.rand(len(gradient), generator=draw, dtype=torch.float64)
    random = torch.rand(len(gradient), generator=draw, dtype=torch.float64).sub(0.5).sign()
    # Along the gradient's own signs, where nothing cancels, and along random ones.
    directions = torch.stack([size * gradient.sign(), size * random])
    predicted = directions @ gradient
    least, runs = math.inf, 0
    for radius in RADII:
        values, _ = training(torch.cat([1 + radius * directions, 1 - radius * directions]))
        slopes = (values[:2] - values[2:]) / (2 * radius)
        runs += 4
        error = float((slopes - predicted).norm() / slopes.norm().clamp(min=1e-300))
        least = min(least, error)
        if least <= FAITHFUL:
            break
    return least, runs


def _score(effects: Tensor, subsets: Tensor, changes: Tensor) -> Score:
    predicted = subsets.double() @ effects
    low, high = spearman_interval(predicted.numpy(), changes.numpy())
    return Score(spearman(predicted.numpy(), changes.numpy()), low, high)


@torch.no_grad()
def _never_drawn(loop: InnerLoop, training: WeightedTraining) -> int:
    problem: Any = loop.problem
    drawn = torch.zeros(problem.count, dtype=torch.bool)
    inner = training.start()
    for k in range(training.steps):
        draw = loop.draw(inner._replace(step=inner.step + k), training.key, k)
        drawn[problem.base.examples_of(problem.inner_batch(draw.fresh())).cpu()] = True
    return int((~drawn).sum())
