"""The world with a known reward, against sampling, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from metaopt.engine.random import fold, generator
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.data.policy import Policy, at_kl, kl, optimise, sample
from metaopt.problems.reward_model.data.world import PreferenceWorld


def draws(runs: int, name: str, first: int = 0) -> list[torch.Generator]:
    return [generator(fold(i, name)) for i in range(first, first + runs)]


def world(runs: int = 2, first: int = 0, **settings: float) -> PreferenceWorld:
    return PreferenceWorld(draws(runs, "world", first), **settings)


def policy(runs: int = 2, seed: int = 5) -> Policy:
    draw = generator(seed)
    slope, offset, size = (
        torch.randn(runs, 12, *s, generator=draw).double() for s in ((4,), (), ())
    )
    return Policy(slope, offset, (size / 3).exp())


def test_the_kl_is_that_of_normal_distributions():
    one, other = policy(seed=5), policy(seed=6)
    draw = generator(1)
    prompts = torch.randn(2, 10_000, 4, generator=draw).double()

    def given(p: Policy) -> Independent:
        zero = torch.zeros(2, 10_000, 12).double()
        return Independent(Normal(p.respond(prompts, zero), p.deviation[:, None]), 1)

    sampled = kl_divergence(given(one), given(other))
    error = sampled.std(-1) / 100
    assert ((kl(one, other) - sampled.mean(-1)).abs() < 4 * error).all()
    assert torch.equal(kl(one, one), torch.zeros(2).double())
    fixed = [p._replace(slope=torch.zeros(2, 12, 4).double()) for p in (one, other)]
    exact = kl_divergence(*(Independent(Normal(p.offset, p.deviation), 1) for p in fixed))
    torch.testing.assert_close(kl(*fixed), exact)


def test_the_gold_reward_is_standardised_and_its_expectation_exact():
    w = world()
    x = sample(w.sft, draws(2, "x"), 100_000, 1).squeeze(2)
    gold = w.gold(x)
    assert (gold.mean(-1).abs() < 0.015).all()
    assert ((gold.std(-1) - 1).abs() < 0.02).all()
    moved = Policy(w.sft.slope + 0.3, w.sft.offset - 0.2, 1.5 * w.sft.deviation)
    gold = w.gold(sample(moved, draws(2, "y"), 100_000, 1)).squeeze(2)
    error = gold.std(-1) / math.sqrt(100_000)
    assert ((w.expected_gold(moved) - gold.mean(-1)).abs() < 4 * error).all()
    assert w.expected_gold(w.sft).abs().max() < 1e-5


def test_the_gold_reward_is_concave_with_a_slope_that_depends_on_the_prompt():
    w = world()
    x = sample(w.sft, draws(2, "x"), 64, 1).squeeze(2)
    prompt, y = x.split((4, 12), -1)
    other = torch.randn(2, 64, 12, generator=generator(3))
    one, two, middle = (w.gold(torch.cat((prompt, at), -1)) for at in (y, other, (y + other) / 2))
    assert (middle >= (one + two) / 2 - 1e-5).all()
    slope = torch.func.grad(lambda at: w.gold(torch.cat((prompt, at), -1)).sum())
    curved = torch.func.grad(lambda at: slope(at)[:, :, 0].sum())(y)[0, 0]
    spread = slope(torch.zeros_like(y)).std(1)
    assert curved[0] < 0
    assert curved[1:].abs().max() < 1e-12
    assert spread.min() > 0.01


def test_the_sft_policy_samples_what_it_says():
    w = world(1)
    x = sample(w.sft, draws(1, "x"), 100_000, 1)[0, :, 0]
    k, b, s = (part[0] for part in w.sft)
    assert s.tolist() == [5.0] * 4 + [3.0] * 8
    covariance = torch.cat(
        (torch.cat((torch.eye(4), k.T), 1), torch.cat((k, k @ k.T + torch.diag(s**2)), 1))
    )
    size = covariance.diagonal().sqrt().numpy()
    off = (np.cov(x.T.numpy()) - covariance.numpy()) / np.outer(size, size)
    assert np.abs(off).max() < 0.02
    assert (np.abs((x.mean(0)[4:] - b).numpy()) < 0.02 * size[4:]).all()
    expected = multivariate_normal(np.r_[np.zeros(4), b], covariance.numpy()).entropy()
    result = multivariate_normal(np.r_[np.zeros(4), b], np.cov(x.T.numpy())).entropy()
    assert abs(expected - result) < 0.05


def test_labels_follow_the_gold_reward_but_for_the_noise():
    w = world(3)
    quiet = w.pairs(draws(3, "train"), 501)
    assert quiet.chosen.shape == quiet.rejected.shape == (3, 501, 16)
    assert torch.equal(quiet.chosen[..., :4], quiet.rejected[..., :4])
    assert not quiet.wrong.any()
    assert (w.gold(quiet.chosen) > w.gold(quiet.rejected)).all()
    some, more = (w.pairs(draws(3, "train"), 501, noise) for noise in (0.2, 0.4))
    assert some.wrong.sum(-1).tolist() == [100] * 3
    assert more.wrong.sum(-1).tolist() == [200] * 3
    assert (some.wrong <= more.wrong).all()
    assert not torch.equal(some.wrong[0], some.wrong[1])
    assert torch.equal(w.gold(some.chosen) < w.gold(some.rejected), some.wrong)
    swapped = torch.where(some.wrong[..., None], some.rejected, some.chosen)
    assert torch.equal(swapped, quiet.chosen)


def test_a_run_does_not_depend_on_those_beside_it():
    w, alone = world(3), world(1, first=1)
    model = FeatureReward(16, (8,))

    def outcome(w: PreferenceWorld, first: int, runs: int) -> list[Tensor]:
        params = model.init(draws(runs, "init", first))

        def reward(x: Tensor) -> Tensor:
            return model.rewards(params, x)

        result = optimise(reward, w.sft, draws(runs, "policy", first), (0.1, 1.0), 20, 32)
        pairs = w.pairs(draws(runs, "pairs", first), 50, 0.2, result.at(0))
        best = w.best_of(reward, draws(runs, "best", first), 4, 50)
        return [*result, *pairs, best, kl(result.at(1), w.sft)]

    for together, single in zip(outcome(w, 0, 3), outcome(alone, 1, 1), strict=True):
        torch.testing.assert_close(together[1:2], single)


def test_the_best_of_n_by_the_gold_reward_is_the_largest_of_n():
    w = world()
    best = w.best_of(w.gold, draws(2, "best"), 16, 4000)
    gold = w.gold(sample(w.sft, draws(2, "other"), 4000, 16)).amax(-1)
    error = gold.std(-1) * math.sqrt(2 / 4000)
    assert ((best - gold.mean(-1)).abs() < 4 * error).all()
    first = w.best_of(lambda x: torch.zeros(x.shape[:-1]), draws(2, "best"), 16, 4000)
    assert (first.abs() < 0.08).all()
    one = w.best_of(w.gold, draws(2, "best"), 1, 200)
    torch.testing.assert_close(
        one, w.gold(sample(w.sft, draws(2, "best"), 200, 1)).flatten(1).mean(-1)
    )


def best_response(w: PreferenceWorld, beta: float) -> Policy:
    """The policy that maximises E[gold] - beta KL: gold is quadratic in y and bilinear in x, y."""
    prompts = torch.zeros(len(w.sft.offset), 5, 4)
    prompts[:, 1:] = torch.eye(4)

    def at(y: Tensor) -> Tensor:
        return w.gold(torch.cat((prompts, y), -1)).sum()

    zero = torch.zeros(len(prompts), 5, 12)
    slope = torch.func.grad(at)(zero)
    ones = torch.func.grad(at)(zero + 1)
    curve = (slope - ones)[:, 0]
    k, b, s = w.sft
    precision = beta / s**2
    offset = (slope[:, 0] + precision * b) / (curve + precision)
    k = ((slope[:, 1:] - slope[:, :1]).mT + precision[..., None] * k) / (curve + precision)[
        ..., None
    ]
    return Policy(k, offset, (beta / (curve + precision)).sqrt())


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.slow
def test_optimising_the_gold_reward_finds_the_best_policy(beta):
    w = world(3)
    best = best_response(w, beta)
    result = optimise(lambda x: 7 * w.gold(x) + 3, w.sft, draws(3, "policy"), (beta,), 400).at(0)

    def value(p: Policy) -> Tensor:
        return w.expected_gold(p) - beta * kl(p, w.sft)

    assert (value(best) - value(result)).min() > -1e-4
    assert (value(best) - value(result)).max() < 0.03
    assert ((kl(result, w.sft) / kl(best, w.sft) - 1).abs() < 0.1).all()
    assert (value(result) > 0.3).all()


def test_gold_at_a_kl_is_numpy_s_interpolation():
    draw = np.random.default_rng(0)
    nats, gold = draw.exponential(5, (6, 7)), draw.normal(size=(6, 7))
    for where in (0.5, 3.0, 7.0):
        expected = []
        for x, y in zip(nats, gold, strict=True):
            at = np.argsort(x)
            value = np.interp(
                math.sqrt(where), np.sqrt(x[at]), y[at], left=math.nan, right=math.nan
            )
            expected.append(value)
        result = at_kl(torch.from_numpy(nats), torch.from_numpy(gold), where)
        np.testing.assert_allclose(result.numpy(), expected)
    ends = torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    assert at_kl(*ends, 0.0).item() == 0
    assert at_kl(*ends, 1.0).item() == 0.5
    assert at_kl(*ends, 4.0).item() == 1
    assert math.isnan(at_kl(*ends, 4.1).item())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: world(low=0.0), "0 < low <= high"),
        (lambda: world(curvature=0.0), "curvature > 0"),
        (lambda: world().pairs(draws(2, "x"), 10, 1.5), r"noise in \[0, 1\]; got 1.5"),
        (lambda: world().pairs(draws(2, "x"), 0), "prompts >= 1"),
        (lambda: sample(world().sft, draws(3, "x"), 4, 1), "a generator for each of 2 policies"),
        (lambda: optimise(lambda x: x[..., 5], world().sft, draws(2, "x"), (0.0,)), "betas > 0"),
        (
            lambda: optimise(lambda x: 0 * x[..., 5], world().sft, draws(2, "x")),
            r"runs \[0, 1\] is const",
        ),
        (lambda: at_kl(torch.zeros(2, 1), torch.zeros(2, 1), 1.0), "S >= 2"),
    ],
)
def test_wrong_settings_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_reward_that_is_not_finite_stops_the_policy():
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        optimise(lambda x: x[..., 5].exp(), world(1).sft, draws(1, "x"), (1e-9,), 300, lr=50.0)
