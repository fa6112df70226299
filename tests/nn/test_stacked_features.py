"""Heads on frozen features, batched."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

from metaopt.engine.random import generator
from metaopt.nn import MLP
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.model.training import bradley_terry


def test_batched_heads_are_single_networks():
    heads = FeatureReward(6, (5, 4))
    params = heads.init([generator(i) for i in range(3)])
    shared, separate = (
        torch.randn(*shape, 6, generator=generator(9)) for shape in ((8,), (3, 2, 7))
    )
    for i in range(3):
        single = MLP((6,), 1, (5, 4), activation="tanh")
        linear = [layer for layer in single if isinstance(layer, nn.Linear)]
        for k, layer in enumerate(linear):
            layer.weight.data = params[f"{k}.weight"][i].T.contiguous()
            layer.bias.data = params[f"{k}.bias"][i, 0]
        torch.testing.assert_close(heads.rewards(params, shared)[i], single(shared)[:, 0])
        torch.testing.assert_close(heads.rewards(params, separate)[i], single(separate[i])[..., 0])
        torch.testing.assert_close(
            heads.features(params, separate)[i], nn.Sequential(*list(single)[:-1])(separate[i])
        )
    assert heads.rewards(params, separate).shape == (3, 2, 7)
    assert FeatureReward(6, ()).rewards(
        FeatureReward(6, ()).init([generator(0)]), shared
    ).shape == (
        1,
        8,
    )


def test_batched_heads_are_independent():
    heads = FeatureReward(6, (5,))
    params = heads.init([generator(i) for i in range(3)])
    alone = heads.init([generator(1)])
    assert all(torch.equal(params[k][1:2], alone[k]) for k in params)
    assert params["0.weight"].abs().max() <= 6**-0.5
    assert params["0.weight"].abs().max() > 0.9 * 6**-0.5
    x = torch.randn(3, 2, 8, 6, generator=generator(9))

    def loss(tensors, x):
        chosen, rejected = heads.rewards(tensors, x).unbind(1)
        return bradley_terry(chosen, rejected).mean(-1).sum()

    together, single = torch.func.grad(loss)(params, x), torch.func.grad(loss)(alone, x[1:2])
    for name in params:
        torch.testing.assert_close(together[name][1:2], single[name])


def test_dropout_of_heads_is_drawn_from_its_generator():
    heads = FeatureReward(6, (400,), dropout=0.25)
    params = heads.init([generator(0), generator(1)])
    x = torch.randn(5, 6, generator=generator(9))
    hidden = heads.features(params, x)
    dropped = heads.features(params, x, generator(2))
    assert torch.equal(dropped, heads.features(params, x, generator(2)))
    assert 0.7 < (dropped != 0).float().mean() < 0.8
    torch.testing.assert_close(dropped[dropped != 0], hidden[dropped != 0] / 0.75)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inputs": 0}, "inputs >= 1"),
        ({"widths": (3, 0)}, "widths >= 1"),
        ({"activation": "step"}, "activation in"),
        ({"dropout": 1.0}, "dropout < 1"),
    ],
)
def test_wrong_settings_of_heads_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        FeatureReward(**{"inputs": 6, **settings})


@pytest.mark.parametrize("shape", [(8, 5), (6,), (3, 8, 6)])
def test_hiddenof_another_shape_are_refused(shape):
    heads = FeatureReward(6)
    with pytest.raises(ValueError, match=r"x must be \(B, 6\) or \(2, ..., 6\)"):
        heads.rewards(heads.init([generator(0), generator(1)]), torch.zeros(shape))
