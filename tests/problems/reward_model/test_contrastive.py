"""Contrastive losses against torch's cross entropy, an optimal transport solved by scipy, loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import adamw
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from metaopt.engine.random import generator
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.model.contrastive import Contrastive, simcse, sinkhorn, swav
from metaopt.problems.reward_model.model.training import Recipe, batches, bradley_terry, every


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).double()


def draws(runs: int, first: int = 0) -> list[torch.Generator]:
    return [generator(i) for i in range(first, first + runs)]


def test_simcse_is_the_cross_entropy_of_cosines():
    one, other = normal(3, 7, 5), normal(3, 7, 5, seed=1)
    losses = simcse(one, other, 0.2)
    for run in range(3):
        scores = torch.stack([cosine_similarity(row, other[run]) for row in one[run]]) / 0.2
        torch.testing.assert_close(losses[run], cross_entropy(scores, torch.arange(7)))
    same = torch.eye(5).double()
    expected = math.log1p(4 * math.exp(-1 / 0.05))
    torch.testing.assert_close(simcse(same, 3 * same).item(), expected)
    torch.testing.assert_close(simcse(one * 9, other, 0.2), losses)


def test_sinkhorn_s_limit_is_optimal_and_balanced():
    scores = normal(2, 12, 4)
    balanced = sinkhorn(scores, 0.5, 2000)
    np.testing.assert_allclose(balanced.sum(-1), 1, atol=1e-9)
    np.testing.assert_allclose(balanced.sum(-2), 3, atol=1e-6)
    ratio = (balanced.log() - scores / 0.5).numpy()
    rank_one = ratio - ratio.mean(1, keepdims=True) - ratio.mean(2, keepdims=True)
    np.testing.assert_allclose(rank_one + ratio.mean((1, 2), keepdims=True), 0, atol=1e-6)
    hard = sinkhorn(scores, 0.01, 5000)
    for run in range(2):
        rows, columns = linear_sum_assignment(-np.repeat(scores[run].numpy(), 3, axis=1))
        assert torch.equal(hard[run].argmax(-1)[rows], torch.from_numpy(columns // 3))
    np.testing.assert_allclose(sinkhorn(scores, 0.05, 1).sum(-1), 1, atol=1e-9)


def test_swav_predicts_the_codes_of_the_other_view():
    one, other, centre = normal(2, 6, 5), normal(2, 6, 5, seed=1), normal(2, 3, 5, seed=2)
    losses = swav(one, other, centre, 0.3)
    for run in range(2):
        scores = [
            torch.stack([cosine_similarity(row, centre[run]) for row in view[run]])
            for view in (one, other)
        ]
        codes = []
        for score in scores:
            q = (score / 0.05).exp()
            q = q / q.sum()
            for _ in range(3):
                q = q / q.sum(0) / 3
                q = q / q.sum(1, keepdim=True) / 6
            codes.append(q * 6)
        expected = cross_entropy(scores[0] / 0.3, codes[1])
        expected = expected + cross_entropy(scores[1] / 0.3, codes[0])
        torch.testing.assert_close(losses[run], expected)
    views = [view.clone().requires_grad_() for view in (one, other)]
    points = centre.clone().requires_grad_()
    swav(*views, points).sum().backward()
    assert all(bool(t.grad.abs().sum() > 0) for t in (*views, points))


@pytest.mark.parametrize("items", ["pairs", "differences"])
@pytest.mark.parametrize("kind", ["simcse", "swav"])
def test_training_lowers_the_loss_of_each_run_on_its_own(kind, items):
    model, recipe = FeatureReward(6, (16,)), Recipe(lr=0.01, batch=16, epochs=4)
    x = normal(2, 2, 96, 6).float()

    def trained(at: slice, weight: float) -> dict[str, Tensor]:
        runs = len(range(2)[at])
        loss = Contrastive(
            model, draws(runs, 10 + (at.start or 0)), kind, items, weight, dropped=0.2, prototypes=8
        )
        start = loss.init(model.init(draws(2)[at]), draws(2, 20)[at])
        rows = batches(draws(2, 30)[at], every(x[0, at]), recipe)
        pairs, run = x[:, at].movedim(0, 2), torch.arange(runs)[:, None]

        def losses(params: dict[str, Tensor]) -> Iterator[Tensor]:
            for step in rows.unbind(1):
                yield loss.add_to(
                    lambda z: bradley_terry(*model.rewards(params, z).unbind(-1)),
                    params,
                    pairs[run, step],
                )

        return adamw.trained(start, losses, recipe)

    def value(params: dict[str, Tensor]) -> Tensor:
        judge = Contrastive(model, draws(2, 50), kind, items, 1.0, dropped=0.2, prototypes=8)
        with torch.no_grad():
            return judge(params, judge.views(x.movedim(0, 2)))

    together, without = trained(slice(None), 1.0), trained(slice(None), 0.0)
    assert (value(together) < value(without) - 0.02).all()
    alone = trained(slice(1, 2), 1.0)
    for name, values in alone.items():
        torch.testing.assert_close(together[name][1:2], values, atol=1e-4, rtol=1e-3)
    assert ("prototypes" in together) == (kind == "swav")


def test_items_are_answers_or_differences_and_their_negatives():
    model = FeatureReward(6, (5,))
    params = model.init(draws(1))
    chosen, rejected = normal(2, 1, 3, 6).float()
    tiny = {"dropped": 1e-9}
    views = [torch.stack((chosen, rejected), 2)] * 2
    pairs = Contrastive(model, draws(1), **tiny)(params, views)
    f, g = model.features(params, chosen), model.features(params, rejected)
    both = torch.cat((f, g), 1)
    torch.testing.assert_close(pairs, simcse(both, both))
    apart = Contrastive(model, draws(1), items="differences", weight=2.0, **tiny)
    both = torch.cat((f - g, g - f), 1)
    torch.testing.assert_close(apart(params, views), 2 * simcse(both, both))


def test_views_are_copies_with_new_features_dropped():
    x = normal(2, 50, 2, 6).float()
    loss = Contrastive(FeatureReward(6, (5,)), draws(2), dropped=0.25)
    first, second = loss.views(x)
    for view in (first, second):
        assert bool(((view == 0) | torch.isclose(view, x / 0.75)).all())
        assert float((view == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert not torch.equal(first, second)
    again = Contrastive(FeatureReward(6, (5,)), draws(1, 1), dropped=0.25).views(x[1:])[0]
    assert torch.equal(again, first[1:])


def test_bradley_and_terry_s_loss_is_that_of_the_pairs_and_both_views():
    x = normal(3, 4, 2, 6).float()
    loss = Contrastive(FeatureReward(6, (5,)), draws(1), weight=0.5)
    params = loss.model.init(draws(3))
    views = Contrastive(loss.model, draws(1)).views(x)

    def losses(x):
        return bradley_terry(*loss.model.rewards(params, x).unbind(-1))

    summed = loss.add_to(losses, params, x)
    expected = (losses(x) + losses(views[0]) + losses(views[1])) / 3
    torch.testing.assert_close(summed, expected + loss(params, views)[:, None])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "byol"}, "kind to be one of simcse, swav"),
        ({"items": "words"}, "items to be one of"),
        ({"weight": -1.0}, "weight >= 0"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"dropped": 0.0}, "0 < dropped < 1"),
        ({"prototypes": 1}, "prototypes >= 2"),
        ({"model": FeatureReward(6, ())}, "a hidden layer"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        Contrastive(**{"model": FeatureReward(6, (5,)), "generators": draws(1), **settings})


def test_models_that_do_not_divide_among_runs_are_refused():
    model = FeatureReward(6, (5,))
    with pytest.raises(ValueError, match="for each of 2 generators; got 3 models"):
        Contrastive(model, draws(2)).views(normal(3, 4, 2, 6).float())
