"""MetaRM and its variants: what the printed algorithm does, and what it does not."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from metaopt import Engine
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, NormalizedSGD
from metaopt.engine.random import Draw, fold, generator
from metaopt.estimators import Direct, FirstOrder, Unroll
from metaopt.nn.stacked_features import FeatureReward
from metaopt.optimizers import Descent
from metaopt.problems.reward_model.feature_task import FeaturePreferences
from metaopt.problems.reward_model.meta_reward_model import MetaRewardModel, random_direction
from metaopt.problems.reward_model.task import reward_spread
from metaopt.problems.reward_model.world_task import PreferenceWorlds

WIDTHS = partial(FeatureReward, widths=(8,))
SMALL = {
    "pairs": 128, "test_pairs": 64, "prompts": 16, "steps": 4, "betas": (0.1, 1.0),
    "levels": (0.01,),
}  # fmt: skip
ESTIMATORS = {"no_restore": Direct}


@pytest.fixture(scope="module")
def world():
    return PreferenceWorlds(WIDTHS, runs=2, seed=3, **SMALL)


@pytest.fixture(scope="module")
def task(world):
    return FeaturePreferences(world, WIDTHS)


def run(task, steps=5, inner=None, estimator=None, lr=1e-2, **settings):
    problem = MetaRewardModel(
        task, inner or NormalizedSGD(lr=0.05), batch=32, prompts=8, **settings
    )
    estimator = estimator or ESTIMATORS.get(problem.variant, FirstOrder)(1)
    adam = Descent(partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95)))
    engine = Engine(problem, estimator, adam, outer_steps=steps, seed=1)
    assert len(list(engine)) == steps
    return engine


def deployed(engine):
    return engine.problem.deployed(engine.optimizer.solution, engine.inner)


# The reward spread J.


@pytest.mark.parametrize("k", [2, 5])
def test_equal_rewards_have_the_least_spread(k):
    assert float(reward_spread(torch.full((k,), 3.0))) == pytest.approx((k - 1) / (2 * k))
    far = 100.0 * torch.arange(k)
    assert float(reward_spread(far)) == pytest.approx((k - 1) / k)


def test_five_equal_rewards_have_the_papers_value():
    assert float(reward_spread(torch.zeros(5))) == pytest.approx(0.4)


def test_spread_is_the_sum_of_sigmoids_over_pairs():
    rewards = torch.randn(3, 4, generator=generator(0), dtype=torch.float64)
    expected = [
        2 / 16 * sum(1 / (1 + math.exp(-abs(r[i] - r[j]))) for i in range(4) for j in range(i))
        for r in rewards.tolist()
    ]
    assert reward_spread(rewards).tolist() == pytest.approx(expected)


def test_ties_have_no_gradient_and_near_ties_the_largest():
    rewards = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 3.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(reward_spread(rewards).sum(), rewards)
    assert grad[0].tolist() == [0.0, 0.0]
    assert grad[1, 1] > grad[2, 1] > 0


def test_one_response_has_no_spread():
    with pytest.raises(ValueError, match="two or more rewards a prompt; got 1"):
        reward_spread(torch.zeros(3, 1))


# Steps.


def test_a_unit_step_has_its_length_for_every_model():
    params = {"a": torch.zeros(3, 2, 4), "b": torch.zeros(3, 1, 5)}
    grads = tree.random_like(params, generator(0))
    grads = {k: g * torch.tensor([1.0, 1e3, 0.0]).view(3, 1, 1) for k, g in grads.items()}
    step = NormalizedSGD(lr=0.2)
    new, _ = step.update(params, grads, {}, 0)
    length = sum(v.flatten(1).square().sum(1) for v in new.values()).sqrt()
    assert length.tolist() == pytest.approx([0.2, 0.2, 0.0])
    assert all(float((new[k] * grads[k]).sum()) < 0 for k in new)
    step.update_(params, grads, {}, 0)
    assert all(torch.equal(params[k], new[k]) for k in new)


def test_a_random_direction_of_a_model_does_not_depend_on_the_other_models():
    params = {"a": torch.zeros(3, 2, 4), "b": torch.zeros(3, 1)}
    three = random_direction(params, generator(5))
    two = random_direction({k: v[:2] for k, v in params.items()}, generator(5))
    assert all(torch.equal(three[k][:2], two[k]) for k in params)
    length = sum(v.flatten(1).square().sum(1) for v in three.values())
    assert length.tolist() == pytest.approx([1.0] * 3)


def test_a_random_step_is_as_long_as_one_along_the_spread(task):
    for ascent in ("reward_spread", "random"):
        engine = run(task, steps=1, inner=NormalizedSGD(lr=0.3), lr=0.0, ascent=ascent)
        moved = tree.add(engine.inner.params, engine.optimizer.solution, -1.0)
        length = sum(v.flatten(1).square().sum(1) for v in moved.values()).sqrt()
        assert length.tolist() == pytest.approx([0.3, 0.3], rel=1e-5)


# Variants.


def test_no_step_is_vanilla_to_the_bit(task):
    vanilla = deployed(run(task, variant="vanilla"))
    none = deployed(run(task, inner=SGD(lr=0.0)))
    assert all(torch.equal(vanilla[k], none[k]) for k in vanilla)
    joint = deployed(run(task, variant="joint", weight=0.0))
    assert all(torch.allclose(vanilla[k], joint[k], atol=1e-7) for k in vanilla)


def test_the_papers_step_is_vanilla_to_four_digits(task):
    vanilla, printed = (
        run(task, steps=20, **settings)
        for settings in ({"variant": "vanilla"}, {"inner": SGD(lr=5e-6)})
    )
    for k, v in deployed(vanilla).items():
        assert torch.allclose(v, deployed(printed)[k], atol=1e-4)
    first, second = vanilla.metrics(), printed.metrics()
    assert all(first[k] == pytest.approx(second[k], abs=1e-4) for k in first)


def pairs(problem, step):
    return problem.outer_batch(Draw(0, outer_step=step)).pairs


def loss_after(problem, phi, key, eta):
    """Return L(phi + eta dJ(phi)), written out with plain autograd."""
    phi = {k: v.detach().requires_grad_() for k, v in phi.items()}
    drawn = problem.inner_batch(Draw(fold(key, 0)))
    rewards = problem.task.responses(phi, drawn.prompts)
    gaps = (rewards[..., :, None] - rewards[..., None, :]).abs()
    k = rewards.shape[-1]
    each = torch.sigmoid(gaps).sum((-1, -2)) - 0.5 * k
    spread = each.mean(-1).sum() / k**2
    grads = torch.autograd.grad(
        spread, list(phi.values()), create_graph=True, materialize_grads=True
    )
    moved = {n: p + eta * g for (n, p), g in zip(phi.items(), grads, strict=True)}
    value = problem.task.row_losses(moved, pairs(problem, 0)).mean(-1).sum()
    return value, phi, moved


@pytest.mark.parametrize("first_order", [True, False])
def test_gradients_are_those_of_the_algorithm(first_order):
    eta = 0.7
    world = PreferenceWorlds(WIDTHS, runs=2, seed=3, **SMALL)
    task = FeaturePreferences(world, WIDTHS)
    problem = MetaRewardModel(task, SGD(lr=eta), batch=32, prompts=8)
    phi = problem.init_outer(generator(0))
    estimator = FirstOrder(1) if first_order else Unroll(1)
    _, feedback = estimator(InnerLoop(problem), phi, InnerLoop(problem).start(phi, None, 7), 7)
    value, leaves, moved = loss_after(problem, phi, 7, eta)
    assert float(feedback.value) == pytest.approx(value.item(), rel=1e-6)
    inputs = moved if first_order else leaves
    expected = torch.autograd.grad(value, list(inputs.values()), materialize_grads=True)
    for (k, result), grad in zip(feedback.grad.items(), expected, strict=True):
        assert torch.allclose(result, grad, atol=1e-6), k


class Parabola:
    """L = |theta - a|^2 / 2 with a smooth spread: where MetaRM stands still is known."""

    rows, prompts, resplit, frozen = 4, 4, 0.0, {}
    target = torch.tensor([[0.4, -0.8, 0.2]], dtype=torch.float64)
    x = torch.randn(4, 5, 3, generator=generator(0), dtype=torch.float64)

    def init(self, generator):
        return {"w": torch.tensor([[0.3, 0.2, -0.1]], dtype=torch.float64)}, {}

    def row_losses(self, tensors, rows, train=True):
        return ((tensors["w"] - self.target) ** 2).sum(-1, keepdim=True).expand(1, len(rows)) / 2

    def responses(self, tensors, prompts):
        return (self.x[prompts] @ tensors["w"][0])[None]

    def spread(self, w):
        return reward_spread(self.responses({"w": w}, torch.arange(4))).mean()


def test_first_and_second_order_agree_with_finite_differences():
    eta, size = 0.7, 1e-6
    problem = MetaRewardModel(Parabola(), SGD(lr=eta))
    phi = problem.init_outer(generator(0))
    along = tree.random_like(phi, generator(1))
    inner, first = FirstOrder(1)(InnerLoop(problem), phi, InnerLoop(problem).start(phi, None, 7), 7)
    _, second = Unroll(1)(InnerLoop(problem), phi, InnerLoop(problem).start(phi, None, 7), 7)

    def outer(theta):
        loop = InnerLoop(problem)
        return float(loop.outer_value(phi, inner._replace(params=theta), loop.outer_draw(inner, 7)))

    ends = [outer(tree.add(inner.params, along, s * size)) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * size)
    assert float(tree.dot(first.grad, along)) == pytest.approx(slope, rel=1e-6)
    ends = [loss_after(problem, tree.add(phi, along, s * size), 7, eta)[0].item() for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * size)
    assert float(tree.dot(second.grad, along)) == pytest.approx(slope, rel=1e-6)
    assert not torch.allclose(first.grad["w"], second.grad["w"], rtol=1e-3)


def test_the_restored_parameters_stop_on_the_low_side_of_the_optimum():
    task, eta = Parabola(), 0.5
    problem = MetaRewardModel(task, SGD(lr=eta))
    descent = Descent(partial(torch.optim.SGD, lr=0.2))
    engine = Engine(problem, FirstOrder(1), descent, outer_steps=200)
    assert len(list(engine)) == 200
    w = engine.optimizer.solution["w"].clone().requires_grad_()
    spread = task.spread(w)
    (slope,) = torch.autograd.grad(spread, w)
    assert torch.allclose(w + eta * slope, task.target, atol=1e-8)
    assert spread < task.spread(task.target)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"variant": "restore"}, False),
        ({"variant": "restore", "sign": -1}, True),
        ({"variant": "no_restore"}, True),
        ({"variant": "joint", "weight": 1.0}, True),
    ],
)
def test_which_variants_spread_rewards(settings, more):
    task = Parabola()

    def spread(problem):
        estimator = ESTIMATORS.get(problem.variant, FirstOrder)(1)
        descent = Descent(partial(torch.optim.SGD, lr=0.2))
        engine = Engine(problem, estimator, descent, outer_steps=60)
        assert len(list(engine)) == 60
        return float(task.spread(deployed(engine)["w"]))

    vanilla = spread(MetaRewardModel(task, SGD(lr=0.2), variant="vanilla"))
    result = spread(MetaRewardModel(task, SGD(lr=0.2), **settings))
    assert (result > vanilla + 1e-4) if more else (result < vanilla - 1e-4)


def test_keeping_the_step_alternates_ascent_and_descent(task):
    """The same numbers as a loop that steps on J, then on L, on one set of parameters."""
    eta, lr, steps = 0.3, 0.1, 4
    problem = MetaRewardModel(task, SGD(lr=eta), variant="no_restore", batch=32, prompts=8)
    engine = Engine(
        problem, Direct(1), Descent(partial(torch.optim.SGD, lr=lr)), outer_steps=steps, seed=1
    )
    w = tree.clone(engine.optimizer.solution)
    for step, _ in engine:
        key = fold(fold(1, step - 1), 0)
        leaves = tree.leaves(w)
        prompts = problem.inner_batch(Draw(key)).prompts
        w = stepped(leaves, -reward_spread(task.responses(leaves, prompts)).mean(-1).sum(), eta)
        leaves = tree.leaves(w)
        w = stepped(leaves, task.row_losses(leaves, pairs(problem, step - 1)).mean(-1).sum(), lr)
    for k, v in w.items():
        assert torch.allclose(deployed(engine)[k], v, atol=1e-5)


def stepped(leaves, loss, lr):
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {k: v - lr * g for (k, v), g in zip(leaves.items(), grads, strict=True)}


def test_theta_prime_is_one_step_further(task):
    engine = run(task, inner=NormalizedSGD(lr=0.25), deploy="theta_prime")
    moved = tree.add(deployed(engine), engine.optimizer.solution, -1.0)
    length = sum(v.flatten(1).square().sum(1) for v in moved.values()).sqrt()
    assert length.tolist() == pytest.approx([0.25, 0.25], rel=1e-4)


def test_a_run_does_not_depend_on_those_beside_it():
    result = []
    for runs in (1, 3):
        world = PreferenceWorlds(WIDTHS, runs=runs, seed=3, **SMALL)
        engine = run(FeaturePreferences(world, WIDTHS), inner=Adam(lr=0.01))
        engine.finish()
        result.append(engine.measured())
    assert set(result[0]) == set(result[1])
    for name, values in result[0].items():
        assert values[0] == pytest.approx(float(result[1][name][0]), abs=1e-5), name


def test_every_pair_is_seen_once_in_a_pass(task):
    problem = MetaRewardModel(task, NormalizedSGD(lr=0.1), batch=30)
    passes = [torch.cat([pairs(problem, 4 * e + i) for i in range(4)]) for e in range(2)]
    assert all(len(drawn.unique()) == 120 for drawn in passes)
    assert not torch.equal(*passes)


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_each_outer_step_has_its_own_pairs_however_many_inner_steps(task, monkeypatch, inner_steps):
    batches = []
    outer_batch = MetaRewardModel.outer_batch
    monkeypatch.setattr(
        MetaRewardModel,
        "outer_batch",
        lambda self, draw: batches.append(outer_batch(self, draw)) or batches[-1],
    )
    problem = run(task, steps=4, variant="no_restore", estimator=Direct(inner_steps)).problem
    drawn = batches[-4:]  # what came before are the trials of the estimator's check
    expected = [pairs(problem, step) for step in range(4)]
    assert all(torch.equal(b.pairs, e) for b, e in zip(drawn, expected, strict=True))


def test_an_estimator_that_would_train_nothing_is_refused(task):
    with pytest.raises(ValueError, match="its derivative would be missing"):
        run(task, estimator=Direct(1))
    with pytest.raises(ValueError, match="warm_start=True"):
        run(task, variant="no_restore", estimator=FirstOrder(1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "undo"}, "variant to be one of restore, no_restore, joint, vanilla"),
        ({"sign": 0}, "sign to be one of 1, -1; got sign=0"),
        ({"ascent": "up"}, "ascent to be one of reward_spread, random"),
        ({"deploy": "both"}, "deploy to be one of theta, theta_prime"),
        ({"batch": 0}, "batch >= 1"),
        ({"weight": -1.0}, "weight >= 0"),
        ({"deploy": "theta_prime", "variant": "joint"}, "use variant=restore or deploy=theta"),
    ],
)
def test_mistakes_are_named(task, settings, words):
    with pytest.raises(ValueError, match=words):
        MetaRewardModel(task, NormalizedSGD(lr=0.1), **settings)
