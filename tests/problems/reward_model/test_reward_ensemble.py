"""Ensembles of reward models against numpy and their members."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metaopt.engine.random import generator
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.model.reward_ensemble import Ensemble, combine

MODEL = FeatureReward(6, (5,))


def draws(runs: int, first: int = 0) -> list[torch.Generator]:
    return [generator(i) for i in range(first, first + runs)]


def members(ensemble: Ensemble, x: torch.Tensor) -> np.ndarray:
    """Rewards (R, M, n) of each member by itself, on x (R, n, 6)."""
    params = ensemble.init(draws(len(x)))
    size = ensemble.members
    found = [
        MODEL.rewards({k: v[i : i + 1] for k, v in params.items()}, x[i // size])[0]
        for i in range(len(x) * size)
    ]
    return torch.stack(found).view(len(x), size, -1).numpy()


@pytest.mark.parametrize("how", ["mean", "worst", "lower"])
def test_an_ensemble_is_one_reward_of_its_centred_members(how):
    x, reference = (torch.randn(3, n, 6, generator=generator(9 + n)) for n in (8, 50))
    ensemble = Ensemble(MODEL, 4, how, 2.0)
    params = ensemble.centred(ensemble.init(draws(3)), reference)
    each = members(ensemble, x) - members(ensemble, reference).mean(-1, keepdims=True)
    expected = {
        "mean": each.mean(1),
        "worst": each.min(1),
        "lower": each.mean(1) - 2 * each.std(1),
    }[how]
    np.testing.assert_allclose(ensemble.rewards(params, x), expected, atol=1e-5)
    grid = ensemble.rewards(params, x.view(3, 2, 4, 6))
    np.testing.assert_allclose(grid.flatten(1), expected, atol=1e-5)
    shared = ensemble.rewards(params, x[1])
    np.testing.assert_allclose(shared[1], expected[1], atol=1e-5)
    assert shared.shape == (3, 8)


def test_only_the_mean_is_blind_to_the_members_constants():
    x = torch.randn(2, 8, 6, generator=generator(9))
    shift = torch.randn(6, 1, 1, generator=generator(8))
    for how in ("worst", "lower"):
        ensemble = Ensemble(MODEL, 3, how)
        params = ensemble.init(draws(2))
        with pytest.raises(ValueError, match=f"an ensemble's {how} compares"):
            ensemble.rewards(params, x)
        moved = {**params, "1.bias": params["1.bias"] + shift}
        torch.testing.assert_close(
            ensemble.rewards(ensemble.centred(moved, x), x),
            ensemble.rewards(ensemble.centred(params, x), x),
            atol=1e-5,
            rtol=0,
        )
    ensemble = Ensemble(MODEL, 3)
    params = ensemble.init(draws(2))
    before, after = (
        ensemble.rewards({**params, "1.bias": bias}, x)
        for bias in (params["1.bias"], params["1.bias"] + shift)
    )
    torch.testing.assert_close(after.diff(dim=-1), before.diff(dim=-1), atol=1e-5, rtol=0)
    assert (after - before).abs().min() > 0.01


def test_one_member_is_itself_whatever_the_combination():
    x = torch.randn(2, 8, 6, generator=generator(9))
    single = MODEL.rewards(MODEL.init(draws(2)), x)
    torch.testing.assert_close(Ensemble(MODEL, 1).rewards(MODEL.init(draws(2)), x), single)
    for how in ("mean", "worst", "lower"):
        assert torch.equal(combine(x[:, :1], how), x[:, 0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Ensemble(MODEL, 0), "members >= 1; got 0"),
        (lambda: Ensemble(MODEL, 3, "median"), "mean, worst or lower"),
        (lambda: combine(torch.zeros(2, 3), "lower", -1.0), "deviations >= 0"),
    ],
)
def test_wrong_settings_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
