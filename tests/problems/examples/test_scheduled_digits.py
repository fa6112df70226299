"""Schedules of learning rates beside numpy and `torch.optim`."""

import numpy as np
import pytest
import torch

from metaopt import Score, Unroll, run
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import epoch_batch
from metaopt.estimators import Forward
from metaopt.optimizers import Constant, Schedule
from metaopt.problems.examples import ScheduledDigits


def rates(problem, outer):
    return [float(problem.log_lr(outer, k).exp()) for k in range(problem.steps)]


def random_outer(problem):
    outer = problem.init_outer(torch.Generator())
    noise = torch.randn(problem.knots, generator=torch.Generator().manual_seed(1))
    return {**outer, "log_lr": outer["log_lr"] + noise}


@pytest.mark.parametrize("knots", [1, 2, 4, 12, 30])
def test_rates_are_linear_in_the_logarithm_between_knots(knots):
    problem = ScheduledDigits(steps=12, knots=knots)
    outer = random_outer(problem)
    logs = np.interp(np.linspace(0, 1, 12), np.linspace(0, 1, knots), outer["log_lr"].numpy())
    np.testing.assert_allclose(rates(problem, outer), np.exp(logs), rtol=1e-12)
    assert problem.log_lr(outer, 50) == problem.log_lr(outer, 11)


def test_cosine_decay_is_that_of_torch():
    problem = ScheduledDigits(steps=12, knots=1, decay="cosine", lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    expected = []
    for _ in range(12):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    outer = problem.init_outer(torch.Generator())
    np.testing.assert_allclose(rates(problem, outer), expected, rtol=1e-9)


def test_a_training_is_that_of_torch_under_the_same_rates():
    problem = ScheduledDigits(steps=12, knots=4, noise=0.2, lr=0.1)
    loop = InnerLoop(problem)
    outer = random_outer(problem)
    initial = loop.initial(outer, 0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    model.double()
    names = [*initial.params]
    with torch.no_grad():
        for ours, theirs in zip(initial.params.values(), model.parameters(), strict=True):
            theirs.copy_(ours)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates(problem, outer).__getitem__)
    for k in range(12):
        chosen = epoch_batch(200, 50, k, problem.seed)
        x, y = (part[chosen] for part in problem.train)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if k < 11:
            scheduler.step()
    final = problem.finish(outer, initial, loop, 0)
    for name, theirs in zip(names, model.parameters(), strict=True):
        torch.testing.assert_close(final.params[name], theirs.detach(), rtol=1e-9, atol=1e-12)


def test_reverse_and_forward_mode_agree():
    grads = []
    for estimator in (Unroll(inner_steps=8), Forward(inner_steps=8)):
        problem = ScheduledDigits(steps=8, knots=3, decay="cosine", lr=0.1)
        loop, outer = InnerLoop(problem), random_outer(problem)
        _, feedback = estimator(loop, outer, loop.start(outer, None, 0), 0)
        grads.append(torch.cat([g.flatten() for g in feedback.grad.values()]))
    assert len(grads[0]) == 4
    assert grads[0].abs().min() > 0
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-15)


def run_untuned(inner_steps):
    problem = ScheduledDigits(steps=6, knots=2, lr=0.1)
    fixed = Schedule(Constant())
    return problem, run(problem, Score(inner_steps=inner_steps), fixed, 1, progress=False)


def test_metrics_are_of_a_training_from_scratch_under_the_chosen_schedule():
    problem, result = run_untuned(6)
    final = {k: float(v) for k, v in problem.metrics(result.outer, result.inner).items()}
    assert result.inner.step == 6
    assert {k: result.metrics[f"eval/{k}"] for k in final} == pytest.approx(final)
    assert final["lr_last"] == pytest.approx(0.1)


@pytest.mark.parametrize("inner_steps", [3, 8])
def test_a_training_of_another_length_is_refused(inner_steps):
    with pytest.raises(ValueError, match=rf"problem\.steps=6 .* trains for {inner_steps}"):
        run_untuned(inner_steps)


def test_what_is_out_of_range_is_named():
    with pytest.raises(ValueError, match="knots"):
        ScheduledDigits(knots=0)
    with pytest.raises(ValueError, match="decay"):
        ScheduledDigits(decay="linear")
