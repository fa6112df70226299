"""World models: gradients against autograd, statistics, early stopping, a model that learns."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from metaopt.engine.random import generator
from metaopt.environments.transitions import (
    Batch,
    pack,
    pick,
    uniform_index,
    unpack,
)
from metaopt.problems.rollout_length.world_model import WorldModel

R, D, A = 3, 4, 2


def transitions(count, seed=0, dtype=torch.float32):
    """A linear system with a reward and an end that depend on where it goes."""
    draw = generator(seed)
    s = torch.randn(R, count, D, generator=draw, dtype=dtype)
    a = torch.randint(A, (R, count), generator=draw)
    mix = torch.linspace(-0.4, 0.5, D * D, dtype=dtype).view(D, D)
    after = s + 0.3 * s @ mix + (a.to(dtype) - 0.5).unsqueeze(-1) * 0.4
    return Batch(s, a, after[..., 0] * 0.5, after, (after[..., 1] > 0.8).to(dtype))


@pytest.mark.parametrize("reward_widths", [None, (7, 5)])
@pytest.mark.parametrize("normalise", [False, True])
def test_gradient_equals_autograd(reward_widths, normalise):
    model = WorldModel(D, A, (6, 5), reward_widths, normalise=normalise)
    state = model.init(R, generator(1))
    params = state.params.double().requires_grad_()
    shift = torch.full((R, 1, D), 0.1, dtype=torch.float64)
    state = state._replace(params=params.detach(), shift=shift, spread=shift + 0.5)
    data = transitions(9, dtype=torch.float64)
    grad = torch.full_like(state.params, torch.nan)
    at = model.views(state)
    model.gradient(at, *model.prepare(at, data), model._views(grad))
    losses = model.losses(at, data)
    wide = state._replace(low=shift - 99, high=shift + 99, params=params)
    after, reward, logit = model.predict(model.views(wide), data.observation, data.action)
    for run in range(R):
        spread = 0.6
        expected = [
            mse_loss(after[run] / spread, data.next_observation[run] / spread),
            mse_loss(reward[run], data.reward[run]),
            binary_cross_entropy_with_logits(logit[run], data.terminal[run]),
        ]
        torch.testing.assert_close(losses[run], torch.stack(expected).detach())
        (slope,) = torch.autograd.grad(sum(expected), params, retain_graph=True)
        torch.testing.assert_close(grad[run], slope[run])
        others = [r for r in range(R) if r != run]
        assert not bool(slope[others].any())


@pytest.mark.parametrize("reward_widths", [None, (32, 16)])
def test_a_fitted_model_predicts_what_it_has_not_seen(reward_widths):
    model = WorldModel(D, A, (32, 16), reward_widths, steps=500, lr=1e-2, held_out=5)
    rows = pack(transitions(600))
    size = torch.full((R, 1), 600)
    untrained = model.init(R, generator(1))
    fresh = transitions(500, seed=1)
    state = model.fit(untrained, rows, size, generator(2))
    at = model.views(state._replace(low=state.low - 9, high=state.high + 9))
    after, reward, logit = model.predict(at, fresh.observation, fresh.action)
    moved = (fresh.next_observation - fresh.observation).square().mean((1, 2))
    missed = (after - fresh.next_observation).square().mean((1, 2))
    assert bool((missed < 0.05 * moved).all())
    assert bool(((reward - fresh.reward).square().mean(1) < 0.05 * fresh.reward.var(1)).all())
    right = ((logit > 0) == (fresh.terminal > 0.5)).float().mean(1)
    assert bool((right > 0.93).all())


def test_predictions_stay_where_observations_were():
    model = WorldModel(D, A)
    rows = pack(transitions(50))
    state = model.fit(model.init(R, generator(0)), rows, torch.full((R, 1), 50), generator(1))
    far = 1e3 * torch.ones(R, 5, D)
    after, _, _ = model.predict(model.views(state), far, torch.ones(R, 5, dtype=torch.long))
    assert torch.equal(after, state.high.expand(R, 5, D))
    assert float(after.max()) <= float(rows[..., : 2 * D].max())


def test_statistics_count_each_runs_own_rows():
    data = transitions(40)
    size = torch.tensor([[40], [25], [2]])
    model = WorldModel(D, A, steps=1)
    state = model.fit(model.init(R, generator(0)), pack(data), size, generator(1))
    for run, n in enumerate([40, 25, 2]):
        change = (data.next_observation - data.observation)[run, :n]
        torch.testing.assert_close(state.shift[run, 0], change.mean(0))
        torch.testing.assert_close(state.spread[run, 0], change.std(0, correction=0))
        met = torch.cat([data.observation[run, :n], data.next_observation[run, :n]])
        torch.testing.assert_close(state.high[run, 0], met.amax(0))
        torch.testing.assert_close(state.low[run, 0], met.amin(0))


def test_held_out_rows_are_never_trained_on():
    """Poisoned held-out rows change what the fit reports and nothing that it learns."""
    model = WorldModel(D, A, steps=30, held_out=4)
    data = transitions(64)
    poisoned = data.reward.clone()
    poisoned[:, 3::4] = 50.0
    size = torch.full((R, 1), 64)
    first, second = (
        model.fit(model.init(R, generator(0)), pack(d), size, generator(1))
        for d in (data, data._replace(reward=poisoned))
    )
    assert torch.equal(first.params, second.params)
    assert bool((second.loss[:, 1] > 1000).all())
    assert bool((first.loss[:, 1] < 10).all())


def test_early_stopping_keeps_each_runs_best_parameters():
    """Runs with few rows overfit and stop early; their loss on held-out rows is the lowest met."""
    draw = generator(5)
    noisy = transitions(400)
    noisy = noisy._replace(reward=torch.randn(R, 400, generator=draw))
    size = torch.tensor([[30], [30], [400]])
    options = {"steps": 400, "held_out": 3, "lr": 1e-2, "evaluate_every": 10}
    stopping = WorldModel(D, A, (32, 32), patience=2, **options)
    running = WorldModel(D, A, (32, 32), **options)
    first, second = (
        m.fit(m.init(R, generator(0)), pack(noisy), size, generator(1)) for m in (stopping, running)
    )
    steps = first.moments.steps.flatten()
    assert bool((steps[:2] < 400).all())
    assert second.moments.steps.flatten().tolist() == [400] * 3
    assert bool((first.loss.sum(1)[:2] < second.loss.sum(1)[:2]).all())


def test_a_fit_continues_from_the_last_one():
    rows, size = pack(transitions(60)), torch.full((R, 1), 60)
    model = WorldModel(D, A, steps=20)
    state = model.fit(model.init(R, generator(0)), rows, size, generator(1))
    state = model.fit(state, rows, size, generator(2))
    assert state.moments.steps.flatten().tolist() == [40] * R


def test_packed_transitions_are_unpacked_and_picked():
    data = transitions(11)
    unpacked = unpack(pack(data))
    for a, b in zip(unpacked, data, strict=True):
        assert torch.equal(a, b)
    index = torch.tensor([[0, 10], [5, 5], [3, 1]])
    picked = pick(pack(data), index)
    for run in range(R):
        assert torch.equal(pack(picked)[run], pack(data)[run, index[run]])


def test_sampled_rows_are_uniform_within_each_runs_size():
    size = torch.tensor([[4], [1], [0]])
    index = uniform_index(size, 8000, generator(0))
    counts = torch.bincount(index[0], minlength=4) / 8000
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert not bool(index[1:].any())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"held_out": 1}, "held_out >= 2 or null; got held_out=1"),
        ({"patience": 3}, "patience=3 needs held_out"),
        ({"patience": 0, "held_out": 5}, "patience=0"),
    ],
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        WorldModel(D, A, **options)
