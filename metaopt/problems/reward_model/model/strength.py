"""How strong each preference is, by several reward models, and what to train on instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.model.training import (
    Recipe,
    Targets,
    batches,
    every,
    fit,
)


class Strength(NamedTuple):
    """Margins r(chosen) - r(rejected) of M reward models; see `strengths`.

    Args:
        mean: mu, (R, n); negative where the models contradict the label.
        std: sigma, the population standard deviation over the models, (R, n).
        gradients: what they cost each run, in gradients of one model's loss on one batch.
    """

    mean: Tensor
    std: Tensor
    gradients: int


def strengths(
    model: FeatureReward,
    generators: Sequence[Generator],
    chosen: Tensor,
    rejected: Tensor,
    models: int = 5,
    folds: int = 5,
    recipe: Recipe | None = None,
) -> Strength:
    """Return the strength of each pair by M models a run, all runs and folds trained at once.

    mu_i = mean_m d_im and sigma_i^2 = mean_m (d_im - mu_i)^2, with d_im the margin of model m on
    pair i. Cross-fitted: model m is trained once for each of `folds` parts of the pairs, without
    that part, and gives its margins there. A model that was trained on a pair for several epochs
    has learnt its label, right or wrong. The models differ in initial weights, order and folds.

    Args:
        model: the architecture.
        generators: one per run, for all that is random of it.
        chosen, rejected: features (R, n, d).
        models: M >= 1 (the paper has 10).
        folds: >= 2 and at most n; or 1 for margins on the training pairs themselves, as the paper
            has them, which is for one epoch.
        recipe: `None` for the defaults.

    Raises:
        ValueError: a number out of its range.

    Cost: the training of R models folds networks, each on a share 1 - 1 / folds of the pairs.

    References: Wang et al., Secrets of RLHF in Large Language Models Part II, 2024, section 2.
    """
    runs, count = chosen.shape[:2]
    if models < 1 or not 1 <= folds <= count:
        raise ValueError(
            f"strengths need models >= 1 and folds between 1 and the {count} pairs; got "
            f"{models} and {folds}."
        )
    recipe = recipe or Recipe()
    params = model.init([g for g in generators for _ in range(models * folds)])
    if folds == 1:
        train = held = every(chosen, models)
    else:
        train, held = _folds(generators, count, models, folds)
    order = batches(generators, train, recipe)
    trained = fit(model, params, chosen, rejected, order, recipe)
    run = torch.arange(runs, device=chosen.device)[:, None, None]
    with torch.no_grad():
        ours = [x[run, held].flatten(0, 1) for x in (chosen, rejected)]
        first, second = (model.rewards(trained, x) for x in ours)
    margins = first.new_empty(runs, models, count)
    margins.scatter_(2, held.reshape(runs, models, -1), (first - second).view(runs, models, -1))
    gradients = models * folds * order.shape[1]
    return Strength(margins.mean(1), margins.std(1, correction=0), gradients)


def keep(mean: Tensor) -> Targets:
    """Return the labels as they are, for strengths mu (R, n)."""
    zeros = torch.zeros_like(mean)
    return Targets(zeros.bool(), zeros + 1, zeros, zeros + 1)


def flip(mean: Tensor, share: float = 0.1, targets: Targets | None = None) -> Targets:
    """Exchange the answers of the pairs with the lowest strength.

    About half the estimated share of wrong labels is a cautious choice: the further up, the more
    right labels are among those flipped.

    Args:
        mean: mu, (R, n).
        share: of the pairs, in [0, 1]: round(share n) of each run; a pair that `targets` has
            flipped is flipped back.
        targets: what is changed; `None` for the labels as they are.

    Raises:
        ValueError: a share outside [0, 1].

    References: Wang et al., 2024, section 3.1 (10 %).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"flip needs a share in [0, 1]; got {share}.")
    old, now = _current(mean, targets)
    lowest = _rank(now) < round(share * mean.shape[-1])
    return old._replace(swap=old.swap ^ lowest, margin=torch.where(lowest, -old.margin, old.margin))


def soft(mean: Tensor, smoothing: float = 0.2, targets: Targets | None = None) -> Targets:
    """Give pairs of negative strength the label q = 1 - a.

    With a < 1/2 a wrong pair is still learnt, with a bounded loss; with a > 1/2 it is flipped in
    part, and a = 1 flips it.

    Args:
        mean: mu, (R, n).
        smoothing: a, in [0, 1].
        targets: what is changed; `None` for the labels as they are.

    Raises:
        ValueError: smoothing outside [0, 1].

    References: Wang et al., 2024, section 3.2; the paper does not say a, whose loss suggests 0.2.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"soft labels need smoothing in [0, 1]; got {smoothing}.")
    old, now = _current(mean, targets)
    mixed = old.label * (1 - smoothing) + (1 - old.label) * smoothing
    return old._replace(label=torch.where(now < 0, mixed, old.label))


def margin(mean: Tensor, scale: float = 1.0, targets: Targets | None = None) -> Targets:
    """Ask of each pair a margin proportional to its strength, m = scale mu.

    A flipped pair has the strength -mu. A negative margin allows a pair to be in the wrong order.

    Args:
        mean: mu, (R, n).
        scale: >= 0; keep margins small, because rewards grow with them.
        targets: what is changed, after any flips; `None` for the labels as they are.

    Raises:
        ValueError: a negative scale.

    References: Wang et al., 2024, section 3.3 (there the margin stands outside the logarithm of
    the sigmoid, where it has no gradient; here it is inside).
    """
    if not scale >= 0:
        raise ValueError(f"margins need scale >= 0; got {scale}.")
    old, now = _current(mean, targets)
    return old._replace(margin=scale * now)


def drop(mean: Tensor, targets: Targets | None = None) -> Targets:
    """Give weight 0 to pairs of negative strength, but one; the other weights keep the mean 1.

    Args:
        mean: mu, (R, n).
        targets: what is changed; `None` for the labels as they are.
    """
    old, now = _current(mean, targets)
    weight = torch.where((now < 0) & (_rank(now) < now.shape[-1] - 1), 0.0, old.weight)
    return old._replace(weight=weight / weight.mean(-1, keepdim=True).clamp(min=1e-12))


def bands(mean: Tensor, count: int = 10) -> Tensor:
    """Return the pairs in bands of equal size by strength, weakest first, (R, count, n // count).

    The n mod count strongest pairs are left out.

    Raises:
        ValueError: fewer than 1 or more than n bands.
    """
    if not 1 <= count <= mean.shape[-1]:
        raise ValueError(f"there can be 1 to {mean.shape[-1]} bands; got {count}.")
    size = mean.shape[-1] // count
    return mean.argsort(dim=-1, stable=True)[:, : size * count].view(len(mean), count, size)


def noise_estimate(mean: Tensor) -> Tensor:
    """Return an estimate of the share of wrong labels, (R,): the share of negative strengths.

    It is biased upwards: where the models are right about a share p of pairs, whatever the label,
    it is on average

        f = e p + (1 - e) (1 - p) = e + (1 - p) (1 - 2 e) >= e

    for a share e < 1/2 of wrong labels, and 1 - p where all labels are right. Strengths on the
    training pairs themselves bias f downwards instead.

    Args:
        mean: cross-fitted mu, (R, n).
    """
    return (mean < 0).float().mean(-1)


def _current(mean: Tensor, targets: Targets | None) -> tuple[Targets, Tensor]:
    """Return targets, and the strengths of their pairs: -mu where the answers are exchanged."""
    targets = targets or keep(mean)
    return targets, torch.where(targets.swap, -mean, mean)


def _rank(strength: Tensor) -> Tensor:
    """Return each pair's place among those of its run, 0 for the weakest."""
    return strength.argsort(dim=-1, stable=True).argsort(dim=-1)


def _folds(
    generators: Sequence[Generator], count: int, models: int, folds: int
) -> tuple[Tensor, Tensor]:
    """Return rows (R, models folds, .) to train on and rows (R, models folds, .) to judge.

    Where n is not a multiple of folds, some rows are judged twice by one network, with one result.
    """
    size = -(-count // folds)
    train, held = [], []
    for generator in generators:
        for _ in range(models):
            order = torch.randperm(count, generator=generator, device=generator.device)
            for fold in range(folds):
                at = slice(fold * count // folds, (fold + 1) * count // folds)
                out = order[at]
                rest = torch.cat((order[: at.start], order[at.stop :]))
                held.append(torch.cat((out, out[:1]))[:size] if len(out) < size else out)
                train.append(rest[: count - size])
    shape = len(generators), models * folds
    return torch.stack(train).view(*shape, -1), torch.stack(held).view(*shape, -1)
