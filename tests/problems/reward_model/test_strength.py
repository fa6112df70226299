"""Strengths, what is made of them, and training in step, against numpy, scipy and single models."""

from __future__ import annotations

from collections.abc import Iterator

import adamw
import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from metaopt.engine.random import fold, generator
from metaopt.nn import MLP
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.data.world import PreferenceWorld
from metaopt.problems.reward_model.model import strength
from metaopt.problems.reward_model.model.strength import (
    bands,
    drop,
    flip,
    keep,
    margin,
    noise_estimate,
    soft,
    strengths,
)
from metaopt.problems.reward_model.model.training import (
    Recipe,
    Targets,
    batches,
    every,
    fit,
    ordered,
)

MODEL = FeatureReward(16, (8,))


def draws(runs: int, name: str, first: int = 0) -> list[torch.Generator]:
    return [generator(fold(i, name)) for i in range(first, first + runs)]


def pairs(runs: int = 2, count: int = 100, noise: float = 0.3, first: int = 0):
    world = PreferenceWorld(draws(runs, "world", first))
    return world.pairs(draws(runs, "pairs", first), count, noise)


def mu(runs: int = 3, count: int = 40) -> Tensor:
    return torch.randn(runs, count, generator=generator(0)) + 0.3


def test_training_in_step_is_training_one_model_with_torch():
    data = pairs()
    recipe = Recipe(lr=0.01, weight_decay=0.1, batch=16, epochs=2)
    params = MODEL.init([g for g in draws(2, "init") for _ in range(3)])
    rows = batches(draws(2, "order"), every(data.wrong, 3), recipe)
    assert rows.shape == (6, 12, 16)
    result = fit(MODEL, params, data.chosen, data.rejected, rows, recipe)
    single = MLP((16,), 1, (8,), activation="tanh")
    linear = [layer for layer in single if isinstance(layer, nn.Linear)]
    for k, layer in enumerate(linear):
        layer.weight.data = params[f"{k}.weight"][4].T.clone()
        layer.bias.data = params[f"{k}.bias"][4, 0].clone()
    adam = torch.optim.AdamW(single.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for at in rows[4]:
        difference = single(data.chosen[1, at]) - single(data.rejected[1, at])
        adam.zero_grad()
        nn.functional.softplus(-difference).mean().backward()
        adam.step()
    for k, layer in enumerate(linear):
        torch.testing.assert_close(result[f"{k}.weight"][4], layer.weight.T, atol=1e-5, rtol=1e-4)
    assert not torch.equal(result["0.weight"], params["0.weight"])


def test_batches_are_whole_passes_in_another_order_each():
    rows = torch.stack([torch.randperm(50, generator=generator(i))[:20] for i in range(4)])
    result = batches(draws(2, "order"), rows.view(2, 2, 20), Recipe(batch=6, epochs=3))
    assert result.shape == (4, 9, 6)
    for own, seen in zip(rows, result.view(4, 3, 18), strict=True):
        for epoch in seen:
            assert len(set(epoch.tolist())) == 18
            assert set(epoch.tolist()) <= set(own.tolist())
        assert not torch.equal(seen[0], seen[1])
    again = batches(draws(1, "order", 1), rows.view(2, 2, 20)[1:], Recipe(batch=6, epochs=3))
    assert torch.equal(again, result[2:])
    assert batches(draws(1, "order"), rows[None, :1], Recipe(batch=64)).shape == (1, 2, 20)


def test_a_run_s_strengths_do_not_depend_on_those_beside_it():
    data, alone = pairs(3, 60), pairs(1, 60, first=1)
    recipe = Recipe(batch=16)
    result = strengths(MODEL, draws(3, "s"), data.chosen, data.rejected, 3, 4, recipe)
    single = strengths(MODEL, draws(1, "s", 1), alone.chosen, alone.rejected, 3, 4, recipe)
    assert result.gradients == single.gradients == 3 * 4 * 2 * (45 // 16)
    for one, other in zip(result[:2], single[:2], strict=True):
        assert one.shape == (3, 60)
        torch.testing.assert_close(one[1:2], other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("count", "folds"), [(60, 4), (61, 4), (7, 7), (9, 2)])
def test_cross_fitted_margins_come_from_models_that_have_not_seen_the_pair(count, folds):
    """With a feature a pair, a linear model's margin moves by training on that pair only."""
    chosen = torch.eye(count).expand(2, -1, -1)
    recipe = Recipe(lr=3.0, weight_decay=0.0, batch=4)
    model, rest = FeatureReward(count, ()), torch.zeros_like(chosen)
    fitted = strengths(model, draws(2, "s"), chosen, rest, 3, folds, recipe)
    assert fitted.mean.abs().max() <= count**-0.5
    assert fitted.mean.unique().numel() == 2 * count
    assert (strengths(model, draws(2, "s"), chosen, rest, 3, 1, recipe).mean > 1).sum() > count


def test_strengths_are_the_mean_and_the_population_deviation_of_margins(monkeypatch):
    """Models that give the reward w . x of their initial weights, judged by numpy."""
    held_out = {}

    def untrained(model, params, chosen, rejected, rows, recipe):
        held_out.update(params)
        return params

    monkeypatch.setattr(strength, "fit", untrained)
    linear, data = FeatureReward(16, ()), pairs(2, 30)
    result = strengths(linear, draws(2, "s"), data.chosen, data.rejected, 4, 1)
    weight = held_out["0.weight"].view(2, 4, 16).numpy()
    margins = np.einsum("rmd,rnd->rmn", weight, (data.chosen - data.rejected).numpy())
    np.testing.assert_allclose(result.mean, margins.mean(1), atol=1e-5)
    np.testing.assert_allclose(result.std, margins.std(1), atol=1e-5)
    weights = torch.from_numpy(weight)
    assert len(torch.unique(weights.flatten(0, 1), dim=0)) == 8


def test_strengths_find_wrong_labels():
    data = pairs(3, 2048)
    result = strengths(FeatureReward(16), draws(3, "s"), data.chosen, data.rejected, 2, 3)
    for run in range(3):
        bad = data.wrong[run]
        u = mannwhitneyu(-result.mean[run][bad], -result.mean[run][~bad]).statistic
        assert u / (bad.sum() * (~bad).sum()).item() > 0.8
    order = bands(result.mean)
    dirty = data.wrong.float().gather(-1, order.flatten(1)).view(order.shape).mean((0, 2))
    assert dirty[0] > 0.75
    assert dirty[-1] < 0.06
    assert (dirty.diff() < 0.02).all()
    estimate = noise_estimate(result.mean)
    assert (estimate > 0.3).all()


@pytest.mark.slow
def test_training_on_flipped_pairs_beats_training_on_the_labels():
    data, model = pairs(3, 2048, 0.4), FeatureReward(16)
    mean = strengths(model, draws(3, "s"), data.chosen, data.rejected, 2, 3).mean
    start, run = model.init(draws(3, "init")), torch.arange(3)[:, None]
    rows = batches(draws(3, "order"), every(data.wrong), Recipe())
    test = PreferenceWorld(draws(3, "world")).pairs(draws(3, "test"), 2000)

    def score(targets: Targets) -> Tensor:
        def losses(params: dict[str, Tensor]) -> Iterator[Tensor]:
            for step in rows.unbind(1):
                sides = (data.chosen[run, step], data.rejected[run, step])
                chosen, rejected = (model.rewards(params, x) for x in sides)
                yield targets.at(run, step).losses(chosen, rejected)

        params = adamw.trained(start, losses, Recipe())
        return ordered(model.rewards(params, test.chosen) - model.rewards(params, test.rejected))

    vanilla, oracle = score(keep(mean)), score(keep(mean)._replace(swap=data.wrong))
    on_labels = fit(model, start, data.chosen, data.rejected, rows)
    margins = (model.rewards(on_labels, x) for x in (test.chosen, test.rejected))
    torch.testing.assert_close(ordered(torch.sub(*margins)), vanilla)
    assert score(flip(mean, 0.3)).mean() > vanilla.mean() + 0.01
    assert (oracle > vanilla + 0.02).all()


def rewards(like: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.randn(2, *like.shape, generator=generator(7)).double()
    return both[0], both[1]


def test_targets_make_the_losses_of_the_paper():
    mean = mu().double()
    chosen, rejected = rewards(mean)
    d, m = (chosen - rejected).numpy(), mean.numpy()

    def nll(x: np.ndarray) -> np.ndarray:
        return np.log1p(np.exp(-x))

    lowest = np.argsort(np.argsort(m, axis=1), axis=1) < 8
    negative = m < 0
    cases = {
        "kept": (keep(mean), nll(d)),
        "flipped": (flip(mean, 0.2), np.where(lowest, nll(-d), nll(d))),
        "soft": (soft(mean, 0.2), np.where(negative, 0.8 * nll(d) + 0.2 * nll(-d), nll(d))),
        "margin": (margin(mean), nll(d - m)),
        "half": (margin(mean, 0.5), nll(d - 0.5 * m)),
        "both": (margin(mean, targets=flip(mean, 0.2)), np.where(lowest, nll(m - d), nll(d - m))),
        "soft and margin": (
            margin(mean, targets=soft(mean, 0.9)),
            np.where(negative, 0.1 * nll(d - m) + 0.9 * nll(m - d), nll(d - m)),
        ),
        "negative dropped": (
            drop(mean),
            np.where(negative, 0, 40 / (40 - negative.sum(1, keepdims=True)) * nll(d)),
        ),
    }
    for name, (targets, expected) in cases.items():
        result = targets.losses(chosen, rejected).numpy()
        np.testing.assert_allclose(result, expected, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(targets.weight.mean(-1), 1, atol=1e-9)


def test_flipping_twice_is_the_identity():
    mean = mu()
    margins = margin(mean, targets=soft(mean))
    once = flip(mean, 1.0, margins)
    assert once.swap.all()
    for one, other in zip(flip(mean, 1.0, once), margins, strict=True):
        assert torch.equal(one, other)
    assert flip(mean, 0.0).swap.sum() == 0
    assert flip(mean, 0.5).swap.sum(-1).tolist() == [20] * 3
    full = soft(mean, 1.0)
    chosen, rejected = rewards(mean)
    by_label = full.losses(chosen, rejected)
    by_swap = keep(mean)._replace(swap=mean < 0).losses(chosen, rejected)
    torch.testing.assert_close(by_label, by_swap)


def test_dropping_leaves_something():
    assert drop(-mu().abs()).weight.count_nonzero(-1).tolist() == [1] * 3


def test_bands_are_sorted_and_equal():
    mean = mu(3, 43)
    order = bands(mean, 4)
    assert order.shape == (3, 4, 10)
    for run in range(3):
        np.testing.assert_array_equal(order[run].flatten(), np.argsort(mean[run].numpy())[:40])


def test_the_noise_estimate_is_biased_as_it_says():
    draw = generator(3)
    wrong, right = (torch.rand(2, 200_000, generator=draw) < p for p in (0.2, 0.8))
    mean = torch.where(wrong ^ ~right, -1.0, 1.0)
    np.testing.assert_allclose(noise_estimate(mean), 0.2 + 0.2 * 0.6, atol=0.005)
    clean = torch.where(right, 1.0, -1.0)
    np.testing.assert_allclose(noise_estimate(clean), 0.2, atol=0.005)


def test_ties_count_half():
    assert ordered(torch.tensor([1.0, 0.0, -1.0, 2.0])).item() == 0.625


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: flip(mu(), 1.1), r"share in \[0, 1\]; got 1.1"),
        (lambda: soft(mu(), -0.1), r"smoothing in \[0, 1\]"),
        (lambda: margin(mu(), -1.0), "scale >= 0"),
        (lambda: bands(mu(), 41), "1 to 40 bands; got 41"),
        (
            lambda: strengths(MODEL, draws(2, "s"), *pairs(2, 9)[:2], models=2, folds=10),
            "between 1 and the 9 pairs",
        ),
        (lambda: batches(draws(2, "o"), every(mu()), Recipe()), "with R = 2"),
        (lambda: batches(draws(3, "o"), every(mu()), Recipe(batch=0)), "batch >= 1"),
        (
            lambda: fit(MODEL, MODEL.init(draws(3, "i")), *pairs(2)[:2], every(mu())),
            "as many models for each of 2 runs",
        ),
    ],
)
def test_wrong_settings_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
