"""Aggregates of steps in log-odds, and the losses of both levels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy, mse_loss

from metaopt.problems.process_reward.model.aggregation import (
    AGGREGATES,
    aggregate,
    outcome_loss,
    step_loss,
)

LOGITS = torch.tensor([[1.5, -0.5, 3.0], [-2.0, 0.25, torch.nan], [4.0, -torch.inf, 9.0]])
MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])


def log_odds(p: float) -> float:
    return math.log(p) - math.log1p(-p)


@pytest.mark.parametrize("how", AGGREGATES)
def test_each_aggregate_is_its_definition_on_probabilities(how):
    expected = []
    for row, present in zip(LOGITS.double(), MASK, strict=True):
        z = row[present]
        p = z.sigmoid().tolist()
        expected.append(
            {
                "mean": sum(map(log_odds, p)) / len(p),
                "sum": sum(map(log_odds, p)),
                "last": log_odds(p[-1]),
                "min": log_odds(min(p)),
                "product": log_odds(math.prod(p)),
            }[how]
        )
    actual = aggregate(LOGITS, MASK, how)
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double())
    runs = torch.stack([LOGITS, 2 * LOGITS, -LOGITS])
    together = aggregate(runs, MASK, how)
    for alone, z in zip(together, runs, strict=True):
        torch.testing.assert_close(alone, aggregate(z, MASK, how))


@pytest.mark.parametrize("how", AGGREGATES)
def test_gradients_reach_the_steps_and_nothing_else(how):
    z = LOGITS.double().nan_to_num().clamp(-5, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: aggregate(x, MASK, how), z)
    grad = torch.autograd.grad(aggregate(z, MASK, how).sum(), z)[0]
    assert torch.equal(grad * ~MASK, torch.zeros_like(grad))
    assert (grad.sum(1) > 0).all()


def test_a_product_of_certain_steps_stays_finite():
    z = torch.tensor([[200.0, 200.0], [-200.0, -300.0], [200.0, -200.0]])
    actual = aggregate(z, torch.ones(3, 2, dtype=torch.bool), "product")
    # 1/P - 1 = (1 + e^-z1)(1 + e^-z2) - 1, by hand: 2 e^-200; e^500; e^200
    torch.testing.assert_close(actual, torch.tensor([200 - math.log(2), -500.0, -200.0]))


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_losses_are_torch_s_own(kind):
    theirs = {"mse": mse_loss, "bce": binary_cross_entropy}[kind]
    labels = torch.tensor([[0.25, 1.0, 0.0], [0.5, torch.nan, torch.nan], [1.0, 0.0, 0.0]])
    known = MASK & ~labels.isnan()
    known[2] = False
    actual = step_loss(LOGITS, labels, known, kind)
    for i in range(2):
        z, p = LOGITS[i][known[i]], labels[i][known[i]]
        torch.testing.assert_close(actual[i], theirs(z.sigmoid(), p))
    assert actual[2] == 0
    score, outcome = torch.tensor([[0.5, -1.5], [2.0, 0.0]]), torch.tensor([True, False])
    expected = theirs(score.sigmoid(), outcome.float().expand(2, 2), reduction="none")
    torch.testing.assert_close(outcome_loss(score, outcome, kind), expected)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="how must be one of mean, sum, last, min, product"):
        aggregate(LOGITS, MASK, "max")
    with pytest.raises(ValueError, match=r"mask must have the last two axes of logits, \(3, 3\)"):
        aggregate(LOGITS, MASK[:2])
    with pytest.raises(ValueError, match="labels must have the last two axes"):
        step_loss(LOGITS, LOGITS[0], MASK)
    with pytest.raises(ValueError, match="one of mse, bce; got 'l1'"):
        step_loss(LOGITS, LOGITS, MASK, "l1")
    with pytest.raises(ValueError, match=r"last axis of score, \(3,\); got \(1,\)"):
        outcome_loss(torch.zeros(3), torch.zeros(1))
