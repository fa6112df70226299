"""Weights of pairs learned from pairs whose labels are right."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from metaopt import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.estimators import Direct, FiniteDifference, FirstOrder, Unroll
from metaopt.metrics.binary import auroc
from metaopt.nn.stacked_features import FeatureReward
from metaopt.optimizers import Descent
from metaopt.problems.reward_model import MetaRewardModel
from metaopt.problems.reward_model.feature_task import FeaturePreferences
from metaopt.problems.reward_model.pair_weights import PreferenceReweighting
from metaopt.problems.reward_model.world_task import PreferenceWorlds
from metaopt.runs.description import to_config

WIDTHS = partial(FeatureReward, widths=(16,))
SMALL = {
    "pairs": 256, "test_pairs": 64, "prompts": 8, "steps": 4, "betas": (0.1, 1.0),
    "levels": (0.01,), "trusted": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return FeaturePreferences(PreferenceWorlds(WIDTHS, runs=2, seed=3, **SMALL), WIDTHS)


def run(task, outer_steps, estimator, lr=100.0, inner=None, **settings):
    inner = inner or AdamW(lr=1e-2, weight_decay=0.01)
    problem = PreferenceReweighting(task, inner, batch=32, seed=1, **settings)
    descent = Descent(partial(torch.optim.SGD, lr=lr))
    engine = Engine(problem, estimator, descent, outer_steps=outer_steps, seed=1)
    assert len(list(engine)) == outer_steps
    return engine


def test_every_run_has_a_weight_for_every_pair(task):
    engine = run(task, 3, FiniteDifference(1))
    weights = engine.problem.weights.table(engine.optimizer.solution)
    assert weights.shape == (2, 256)
    assert engine.inner.step == 3
    changed = weights != 1
    assert changed.sum(-1).tolist() == [96, 96]


def test_a_hypergradient_is_the_alignment_with_the_trusted_pairs(task):
    """One step of plain descent: dF/dw_i = -lr / B <dF/dtheta, dl_i/dtheta>, by autograd."""
    lr, batch = 0.05, 32
    problem = PreferenceReweighting(task, SGD(lr=lr), batch=batch, seed=1)
    phi = problem.init_outer(torch.Generator().manual_seed(0))
    start = InnerLoop(problem).start(phi, None, 5)
    theta = {k: v.clone().requires_grad_() for k, v in start.params.items()}
    rows = problem._pairs(0).rows
    losses = task.row_losses(theta, rows)
    end, feedback = Unroll(1)(InnerLoop(problem), phi, start, 5)
    meta = {k: v.clone().requires_grad_() for k, v in end.params.items()}
    loop = InnerLoop(problem)
    drawn = loop.outer_batch(loop.outer_draw(start, 5))
    value = task.meta_losses(meta, drawn.rows).mean(-1).sum()
    v = torch.autograd.grad(value, list(meta.values()), materialize_grads=True)
    for run, row in ((0, 3), (1, 7)):
        g = torch.autograd.grad(
            losses[run, row], list(theta.values()), retain_graph=True, materialize_grads=True
        )
        dot = sum((a * b).sum() for a, b in zip(v, g, strict=True))
        slope = -lr / batch * dot * 0.5  # dw/dphi = 2 sigmoid'(0) = 1/2
        assert float(feedback.grad["weights"][run, rows[row]]) == pytest.approx(
            slope.item(), rel=1e-3, abs=1e-9
        )
    others = torch.ones(256, dtype=torch.bool)
    others[rows] = False
    assert not feedback.grad["weights"][:, others].any()


def test_wrong_labels_get_smaller_weights(task):
    engine = run(task, 64, FiniteDifference(1))
    weights = engine.problem.weights.table(engine.optimizer.solution)
    for row, wrong in zip(weights, task.data.training.wrong, strict=True):
        assert auroc(-row, wrong) > 0.65


def test_weights_of_one_train_as_a_vanilla_model_does(task):
    engine = run(task, 4, Direct(1), retrain_steps=6)
    engine.finish()
    weights = engine.optimizer.solution["weights"]
    assert torch.equal(weights, torch.zeros_like(weights))
    inner = engine.inner
    problem = MetaRewardModel(task, SGD(lr=0.0), variant="vanilla", batch=32, seed=1)
    adam = Descent(partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.01))
    vanilla = Engine(problem, FirstOrder(), adam, outer_steps=6, seed=1)
    assert len(list(vanilla)) == 6
    for name, value in vanilla.optimizer.solution.items():
        torch.testing.assert_close(inner.params[name], value, rtol=1e-5, atol=1e-6)
    assert {"eval/best_of_16", "eval/held_out_accuracy"} <= set(engine.measured())
    assert engine.measured()["eval/best_of_16"].shape == (2,)


def test_retraining_and_further_members_are_charged(task):
    engine = run(task, 4, Direct(1), retrain_steps=6)
    assert engine.ledger.spent["gradients"] == 4
    engine.finish()
    assert engine.ledger.spent["gradients"] == 4 + 6
    three = FeaturePreferences(PreferenceWorlds(WIDTHS, runs=2, seed=3, **SMALL), WIDTHS, members=3)
    engine = run(three, 4, Direct(1), retrain_steps=6)
    engine.finish()
    assert engine.ledger.spent["gradients"] == 3 * (4 + 6)


def test_retraining_may_be_left_out(task):
    engine = run(task, 2, Direct(1), retrain_steps=0)
    before = {k: v.clone() for k, v in engine.inner.params.items()}
    engine.finish()
    assert all(torch.equal(before[k], engine.inner.params[k]) for k in before)


def test_a_description_holds_all_arguments(task):
    for steps in (0, 6):
        node = to_config(PreferenceReweighting(task, SGD(lr=0.1), bound=3.0, retrain_steps=steps))
        assert "_missing_" not in node
        assert (node["retrain_steps"], node["link"], node["bound"]) == (steps, "sigmoid", 3.0)


def test_mistakes_are_named(task):
    with pytest.raises(ValueError, match="retrain_steps >= 0; got retrain_steps=-1"):
        PreferenceReweighting(task, SGD(lr=0.1), retrain_steps=-1)
