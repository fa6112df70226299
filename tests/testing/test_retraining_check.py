"""Predicted effects of training examples against training without them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from metaopt import SGD, Adam, functional_call, split_module
from metaopt.engine.example_weights import ExampleWeighted
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.leaving_out import WeightedTraining, draw_subsets
from metaopt.engine.random import fold, generator
from metaopt.problems.domain_reweighting import DomainReweighting
from metaopt.problems.domain_reweighting.weights import WeightNetwork, WeightTable
from metaopt.problems.examples import NoisyDigits, Ridge
from metaopt.testing import check_retraining
from metaopt.testing.counterfactual import GRADIENTS, WEIGHTS, Score


def digits(optimizer=None, task=None, **options):
    task = task or NoisyDigits(count=60, clean=40, hidden=6)
    options = {"sampling": "rows", "batch": 20, "meta_batch": 40} | options
    return DomainReweighting(task, optimizer or Adam(lr=3e-3), **options)


class Layers(NoisyDigits):
    """A task whose model is a module."""

    def __init__(self, *layers, dtype=torch.float64):
        super().__init__(count=60, clean=40)
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(64, 6), *layers, nn.Tanh(), nn.Linear(6, 10))
        self.module.to(dtype)
        self.x, self.meta_x = self.x.to(dtype), self.meta_x.to(dtype)

    def init(self, generator):
        return split_module(self.module)[:2]

    def _logits(self, tensors, x):
        return functional_call(self.module, tensors, x)


def plain_training(task, weights, steps, problem, lr):
    """Return F after SGD in plain torch on the batches of seed 0."""
    loop = InnerLoop(problem)
    key = fold(0, 0)
    inner = loop.start(problem.init_outer(generator(fold(0, "outer"))), None, key)
    theta = {k: v.clone().requires_grad_() for k, v in inner.params.items()}
    for k in range(steps):
        rows = problem.inner_batch(loop.draw(inner, key, k)).rows
        loss = (weights[rows] * task.row_losses(theta, rows)).sum() / len(rows)
        grads = torch.autograd.grad(loss, list(theta.values()))
        with torch.no_grad():
            for value, grad in zip(theta.values(), grads, strict=True):
                value -= lr * grad
    with torch.no_grad():
        return float(task.meta_losses(theta, torch.arange(task.meta_rows)).mean())


@pytest.mark.parametrize("sampling", ["rows", "domains"])
def test_retraining_leaves_the_rows_out_of_the_loss_and_changes_nothing_else(sampling):
    problem = digits(SGD(lr=0.5), sampling=sampling)
    result = check_retraining(problem, 4, retrainings=20, leave=0.1, gradient=False)
    assert result.stacked == "stacked"
    ones = torch.ones(60, dtype=torch.float64)
    full = plain_training(problem.task, ones, 4, problem, 0.5)
    assert result.value == pytest.approx(full, rel=1e-10)
    for j in (0, 7):
        left = plain_training(problem.task, ones - result.subsets[j].double(), 4, problem, 0.5)
        assert float(result.changes[j]) == pytest.approx(left - full, rel=1e-6, abs=1e-12)


def test_stacked_trainings_are_those_one_after_another():
    problem = digits()
    outer = problem.init_outer(generator(0))
    training = WeightedTraining(InnerLoop(ExampleWeighted(problem, outer)), 3, 0)
    weights = torch.rand(4, 60, generator=generator(1), dtype=torch.float64)
    together, models = training(weights)
    training.together = 1
    alone, singles = training(weights)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(models[2], singles[2])


@pytest.mark.slow
def test_the_gradient_is_that_of_differences_of_plain_training():
    problem = digits(SGD(lr=0.5))
    result = check_retraining(problem, 6, retrainings=20, leave=0.1)
    ones, h = torch.ones(60, dtype=torch.float64), 1e-5
    for i in range(0, 60, 13):
        at = h * torch.eye(60, dtype=torch.float64)[i]
        values = [plain_training(problem.task, ones + s * at, 6, problem, 0.5) for s in (1, -1)]
        slope = (values[0] - values[1]) / (2 * h)
        assert float(-result.effects[GRADIENTS][i]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert result.gradient_error < 1e-6


def test_subsets_are_disjoint_where_the_examples_suffice():
    parts = draw_subsets(400, 100, 0.01, "auto", 0)
    assert parts.sum(1).eq(4).all()
    assert parts.sum(0).eq(1).all()
    halves = draw_subsets(400, 30, 0.5, "auto", 0)
    assert halves.sum(1).eq(200).all()
    assert halves.sum(0).float().std() > 1
    with pytest.raises(ValueError, match="more than the 400"):
        draw_subsets(400, 100, 0.02, "disjoint", 0)
    with pytest.raises(ValueError, match="leave out at least one"):
        draw_subsets(40, 20, 0.01, "auto", 0)
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        draw_subsets(40, 20, 1.5, "auto", 0)


def test_too_few_retrainings_and_problems_without_examples_are_refused():
    with pytest.raises(ValueError, match="at least 20"):
        check_retraining(digits(), 2, retrainings=19)
    with pytest.raises(TypeError, match="does not say what its training examples are"):
        check_retraining(Ridge(), 2)
    with pytest.raises(ValueError, match="train_on=meta"):
        check_retraining(digits(train_on="meta"), 2, leave=0.1)
    with pytest.raises(ValueError, match="F is the same"):
        check_retraining(digits(SGD(lr=0.0)), 2, leave=0.1, gradient=False)
    with pytest.raises(ValueError, match="60 finite numbers"):
        check_retraining(digits(), 2, leave=0.1, attributions={"x": torch.ones(3)})


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(6), nn.BatchNorm1d(6, track_running_stats=False)], ids=str
)
def test_examples_that_meet_in_batch_statistics_are_refused(norm):
    with pytest.raises(ValueError, match="depends on the others of its batch, as through BatchN"):
        check_retraining(digits(task=Layers(norm)), 2, leave=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(nn.Dropout(0.3),), (nn.LayerNorm(6),)], ids=str)
def test_dropout_has_the_same_masks_in_all_trainings(layers):
    result = check_retraining(digits(SGD(lr=0.1), Layers(*layers)), 6, retrainings=20, leave=0.1)
    assert (result.stacked == "stacked") == (not isinstance(layers[0], nn.Dropout))
    assert result.gradient_error < 1e-3
    assert result.scores[GRADIENTS].lds > (0.9 if isinstance(layers[0], nn.Dropout) else 0.5)
    assert not result.note


@pytest.mark.slow
@pytest.mark.parametrize("weights", [WeightNetwork(), WeightTable(per="row", link="sigmoid")])
def test_the_weights_of_phi_do_not_enter(weights):
    """The training that examples are left out of weighs all by 1."""
    plain = check_retraining(digits(), 4, retrainings=20, leave=0.1)
    other = check_retraining(digits(weights=weights), 4, retrainings=20, leave=0.1)
    torch.testing.assert_close(plain.changes, other.changes)
    torch.testing.assert_close(plain.effects[GRADIENTS], other.effects[GRADIENTS])


@pytest.mark.slow
def test_gradients_predict_smooth_training_and_shuffled_ones_do_not():
    problem = DomainReweighting(
        NoisyDigits(), Adam(lr=3e-3), sampling="rows", batch=50, meta_batch=100
    )
    result = check_retraining(problem, 64, leave=0.025)
    assert result.scores[GRADIENTS].lds >= 0.97
    assert result.smoothness > 0.9
    assert not result.failed
    assert "row gradients predict retraining (0.9" in result.verdicts[GRADIENTS].text
    shuffled = result.effects[GRADIENTS][torch.randperm(400, generator=generator(5))]
    again = check_retraining(
        problem, 64, leave=0.025, gradient=False, attributions={WEIGHTS: shuffled}
    )
    assert abs(again.scores[WEIGHTS].lds) < 0.3
    assert again.failed


@pytest.mark.slow
def test_smoothness_tells_sgd_from_a_rough_adam():
    def smoothness(optimizer):
        problem = DomainReweighting(
            NoisyDigits(), optimizer, sampling="rows", batch=50, meta_batch=100
        )
        return check_retraining(problem, 64, retrainings=40, leave=0.1)

    assert smoothness(SGD(lr=0.5)).smoothness >= 0.99
    rough = smoothness(Adam(lr=0.1))
    assert rough.smoothness < 0.3
    assert abs(rough.scores[GRADIENTS].lds) < 0.4
    assert "do not trust: S = 0.0" in rough.verdicts[GRADIENTS].text


@pytest.mark.slow
def test_a_gradient_that_a_loss_detaches_is_not_trusted():
    class Detached(DomainReweighting):
        def example_losses(self, outer, inner, batch):
            losses = super().example_losses(outer, inner, batch)
            return losses * losses.detach()

    problem = Detached(NoisyDigits(count=60, clean=40), SGD(lr=0.5), batch=20, meta_batch=40)
    result = check_retraining(problem, 8, retrainings=20, leave=0.1)
    assert result.gradient_error > 0.05
    assert "differences of the run" in result.verdicts[GRADIENTS].text
    assert result.failed


def test_claims_of_98_percent_need_a_hundred_retrainings():
    result = check_retraining(digits(), 2, retrainings=20, leave=0.05, gradient=False)
    result = dataclasses.replace(result, scores={WEIGHTS: Score(0.99, 0.95, 0.995)})
    assert "100 retrainings would allow" in result.verdicts[WEIGHTS].text
    result = dataclasses.replace(result, scores={WEIGHTS: Score(float("nan"), None, None)})
    assert result.failed
