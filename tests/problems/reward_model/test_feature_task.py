"""Preferences on features: ensembles, labels, and the worlds they are judged in."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from metaopt import Engine
from metaopt.engine.inner_optimizers import NormalizedSGD
from metaopt.engine.random import generator, replay
from metaopt.estimators import Direct, FirstOrder
from metaopt.nn.stacked_features import FeatureReward
from metaopt.optimizers import Descent
from metaopt.problems.reward_model import MetaRewardModel
from metaopt.problems.reward_model.data.features import PreferenceFeatures
from metaopt.problems.reward_model.denoising import Band, Denoised, OracleLabels
from metaopt.problems.reward_model.feature_task import FeaturePreferences
from metaopt.problems.reward_model.model.contrastive import Contrastive
from metaopt.problems.reward_model.model.training import Recipe, bradley_terry
from metaopt.problems.reward_model.world_task import PreferenceWorlds

WIDTHS = partial(FeatureReward, widths=(8,))
SMALL = {
    "pairs": 128, "test_pairs": 64, "prompts": 16, "steps": 4, "betas": (0.1, 1.0),
    "levels": (0.01,),
}  # fmt: skip
QUICK = {"models": 2, "folds": 2, "recipe": Recipe(epochs=1)}


@pytest.fixture(scope="module")
def world():
    return PreferenceWorlds(WIDTHS, runs=2, seed=3, **SMALL)


def test_the_first_member_of_an_ensemble_is_the_single_model(world):
    one, three = FeaturePreferences(world, WIDTHS), FeaturePreferences(world, WIDTHS, members=3)
    single, several = one.init(generator(0))[0], three.init(generator(0))[0]
    assert all(torch.equal(single[k], several[k][::3]) for k in single)
    rows = torch.arange(10)
    losses = three.row_losses(several, rows, train=False)
    assert losses.shape == (6, 10)
    assert torch.allclose(losses[::3], one.row_losses(single, rows, train=False))
    everything = three.row_losses(
        {k: v[[0, 0, 0, 3, 3, 3]] for k, v in several.items()}, torch.arange(128)
    )
    assert not torch.allclose(everything[0], everything[1])
    assert torch.allclose(everything[0].sort().values, everything[1].sort().values)


@pytest.mark.parametrize(("how", "pick"), [("mean", torch.mean), ("worst", torch.amin)])
def test_an_ensemble_is_the_mean_or_the_worst_of_its_members(world, how, pick):
    task = FeaturePreferences(world, WIDTHS, members=3, aggregate=how)
    params = task.init(generator(0))[0]
    pairs = world.features.training
    each = []
    for m in range(3):
        single = {k: v[m::3] for k, v in params.items()}
        answers = [task.model.rewards(single, x) for x in (pairs.chosen, pairs.rejected)]
        each.append(answers[0] - (how == "worst") * torch.cat(answers, 1).mean(1, keepdim=True))
    expected = pick(torch.stack(each), 0)
    assert torch.allclose(task.reward(params)(pairs.chosen), expected, atol=1e-5)


def test_trusted_pairs_have_the_right_labels(world):
    task = FeaturePreferences(world, WIDTHS)
    assert task.meta_rows == 6
    params = task.init(generator(0))[0]
    rows = torch.arange(task.meta_rows)
    given, right = task.row_losses(params, rows, False), task.meta_losses(params, rows, False)
    wrong = world.features.training.wrong[:, : task.meta_rows]
    assert torch.equal(given == right, ~wrong)
    assert bool(wrong.any())


def test_corrected_labels(world):
    oracle = FeaturePreferences(world, WIDTHS, OracleLabels())
    assert oracle.training.facts["wrong_labels"].tolist() == [0.0, 0.0]
    some = FeaturePreferences(world, WIDTHS, OracleLabels("trusted"))
    given = FeaturePreferences(world, WIDTHS)
    fixed = world.features.training.wrong[:, :6].float().sum(-1) / 128
    assert torch.allclose(
        given.training.facts["wrong_labels"] - some.training.facts["wrong_labels"], fixed
    )
    rows = torch.arange(6)
    params = given.init(generator(0))[0]
    assert torch.equal(some.row_losses(params, rows, False), given.meta_losses(params, rows, False))


def test_denoised_labels_change_in_the_stated_order(world):
    labels = Denoised(flip=0.1, smoothing=0.2, margin=1.0, drop=True, **QUICK)
    training = FeaturePreferences(world, WIDTHS, labels).training
    targets = training.targets
    assert targets.swap.sum(-1).tolist() == [13, 13]
    assert bool((targets.margin < 0).any())
    assert bool((targets.margin[targets.swap] > 0).all())
    assert torch.allclose(targets.weight.mean(-1), torch.ones(2))
    assert targets.label.unique().tolist() == pytest.approx([0.8, 1.0])
    assert {"noise_estimate", "strength_auroc", "wrong_labels"} == set(training.facts)


def test_a_band_trains_on_its_share_alone(world):
    facts = []
    for index in (0, 4):
        task = FeaturePreferences(world, WIDTHS, Band(index=index, count=5, **QUICK))
        assert task.rows == 25
        assert len(task.training.rows.unique()) > 25
        facts.append(task.training.facts)
    assert bool((facts[0]["band_strength"] < facts[1]["band_strength"]).all())
    flipped = FeaturePreferences(world, WIDTHS, Band(index=0, count=5, flip=True, **QUICK)).training
    assert torch.allclose(1 - facts[0]["wrong_labels"], flipped.facts["wrong_labels"])
    assert flipped.targets.swap.sum(-1).tolist() == [25, 25]


def test_a_noisy_world_is_the_clean_one_with_labels_exchanged():
    clean, noisy = (
        PreferenceWorlds(WIDTHS, runs=1, noise=noise, **SMALL).features.training
        for noise in (0.0, 0.3)
    )
    wrong = noisy.wrong[..., None]
    assert int(wrong.sum()) == round(0.3 * 128)
    assert torch.equal(torch.where(wrong, noisy.rejected, noisy.chosen), clean.chosen)


def test_responses_come_from_the_policy_that_is_named():
    result = {
        source: PreferenceWorlds(WIDTHS, runs=1, source=source, **SMALL).features.responses
        for source in ("shifted", "sft", "noise")
    }
    assert all(x.shape == (1, 16, 5, 16) for x in result.values())
    assert torch.equal(result["sft"][..., :4], result["shifted"][..., :4])
    assert float(result["noise"][..., 8:].std()) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(result["sft"][..., :4], result["noise"][..., :4])
    assert not torch.equal(result["sft"], result["shifted"])


def test_a_run_measures_gold_rewards_and_writes_figures_and_models(world, tmp_path):
    task = FeaturePreferences(world, WIDTHS)
    problem = MetaRewardModel(task, NormalizedSGD(lr=0.05))
    engine = Engine(
        problem, FirstOrder(1), Descent(partial(torch.optim.Adam, lr=0.01)), outer_steps=2
    )
    assert len(list(engine)) == 2
    assert "eval/best_of_16" not in engine.metrics()
    engine.finish()
    result = engine.measured()
    assert {"eval/gold_at_kl_0.01", "eval/best_of_16", "eval/kl_fixed"} < set(result)
    assert all(v.shape == (2,) for v in result.values())
    outer, inner = engine.optimizer.solution, engine.inner
    snapshot = problem.report.snapshot(outer, inner)
    assert [p.name for p in problem.report.figures([(2, snapshot)], tmp_path)] == ["gold.png"]
    text = problem.report.deliver(outer, inner, [], tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("held_out_accuracy"))
    assert float(line.split()[1]) == pytest.approx(
        float(result["eval/held_out_accuracy"].mean()), abs=1e-4
    )
    saved = load_file(tmp_path / "reward_models.safetensors")
    assert all(torch.equal(saved[k], outer[k]) for k in outer)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda w: FeaturePreferences(w, WIDTHS, members=0), "members >= 1; got members=0"),
        (lambda w: FeaturePreferences(w, WIDTHS, aggregate="best"), "one of mean, worst, lower"),
        (lambda w: PreferenceWorlds(WIDTHS, runs=0), "runs >= 1"),
        (lambda w: PreferenceWorlds(WIDTHS, source="ppo"), "one of shifted, sft, noise"),
        (lambda w: PreferenceWorlds(WIDTHS, beta=0.2), "betas must hold beta=0.2"),
        (lambda w: OracleLabels("some"), "which to be one of all, trusted"),
        (lambda w: Band(index=10), "0 <= index < count; got index=10, count=10"),
        (
            lambda w: PreferenceFeatures(w.features.training, 0, w.features.responses, {}),
            "trusted must be between 1 and the 128 pairs; got 0",
        ),
        (
            lambda w: PreferenceFeatures(w.features.training, 1, w.features.responses[:1], {}),
            r"responses must be \(2, prompts, k >= 2, 16\)",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(world, make, words):
    with pytest.raises(ValueError, match=words):
        make(world)


@pytest.mark.parametrize(("kind", "items"), [("simcse", "pairs"), ("swav", "differences")])
def test_a_contrastive_loss_is_added_where_labelled_pairs_are_trained(world, kind, items):
    plain = FeaturePreferences(world, WIDTHS)
    how = partial(Contrastive, kind=kind, items=items, weight=0.5, prototypes=4)
    task = FeaturePreferences(world, WIDTHS, auxiliary=how)
    params, start = task.init(generator(0))[0], plain.init(generator(0))[0]
    assert set(params) - set(start) == ({"prototypes"} if kind == "swav" else set())
    assert all(torch.equal(params[k], v) for k, v in start.items())
    rows = torch.arange(8)
    assert torch.equal(task.row_losses(params, rows, False), plain.row_losses(start, rows, False))
    with replay(5):
        result = task.row_losses(params, rows)
    with replay(5):
        assert torch.equal(task.row_losses(params, rows), result)

    loss = how(task.model, [generator(5)])
    x = torch.stack((world.features.training.chosen, world.features.training.rejected), 2)[:, :8]
    views = loss.views(x)
    ranked = [bradley_terry(*task.model.rewards(params, v).unbind(-1)) for v in (x, *views)]
    expected = torch.stack(ranked).mean(0) + loss(params, views)[:, None]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("variant", ["vanilla", "restore", "no_restore", "joint"])
@pytest.mark.parametrize("kind", ["simcse", "swav"])
def test_every_variant_learns_with_a_contrastive_loss(world, kind, variant):
    how = partial(Contrastive, kind=kind, prototypes=4)
    task = FeaturePreferences(world, WIDTHS, members=2, auxiliary=how)
    problem = MetaRewardModel(task, NormalizedSGD(lr=0.05), variant)
    estimator = Direct(1) if variant == "no_restore" else FirstOrder(1)
    algorithm = partial(torch.optim.Adam, lr=0.01)
    engine = Engine(problem, estimator, Descent(algorithm), outer_steps=2)
    start = {k: v.clone() for k, v in engine.optimizer.solution.items()}
    assert len(list(engine)) == 2
    after = engine.optimizer.solution
    still = {k for k, v in start.items() if torch.equal(after[k], v)}
    assert still <= {"1.bias"}
    assert engine.measured()["eval/held_out_accuracy"].shape == (2,)
