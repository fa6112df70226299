"""Hypergradients of 32 row weights against central differences of training in plain torch."""

import copy

import pytest
import torch
from tiny_rows import GPT2, KINDS, LLAMA, task

from metaopt.engine.inner_loop import loop_of
from metaopt.engine.inner_optimizers import AdamW
from metaopt.estimators import OneStep, Unroll
from metaopt.problems.domain_reweighting import DomainReweighting
from metaopt.problems.domain_reweighting.batches import Rows
from metaopt.problems.domain_reweighting.weights import WeightTable

WARM, ROWS = 5, 32
LR = 1e-3


def batch(step):
    """Return 8 of 32 rows, others in each step."""
    return (8 * step + torch.arange(8) * 3) % ROWS


class Fixed(DomainReweighting):
    """Takes its batches in a fixed order."""

    def inner_batch(self, draw):
        return Rows(batch(draw.total_inner_step))

    def outer_batch(self, draw):
        return Rows(torch.arange(16), meta=True)


def problem(kind, source, dtype=torch.float32, **options):
    given = KINDS[kind][1](ROWS)
    for i, row in enumerate(given):
        row["prompt"] += f" {i}"
    made = task(kind, source, given=given, **options)
    made.model._start = {k: v.to(dtype) for k, v in made.model._start.items()}
    weights = WeightTable(per="row", link="clamp")
    return Fixed(
        made, AdamW(lr=LR, weight_decay=0.0), weights, sampling="rows", batch=8, meta_batch=16
    )


def hypergradient(made, estimator):
    loop = loop_of(made)
    dtype = next(iter(made.task.init(None)[0].values())).dtype
    outer = {"weights": torch.ones(ROWS, dtype=dtype)}
    estimator.check(loop)
    inner = loop.run(outer, loop.initial(outer, 0), 0, WARM)
    return estimator(loop, outer, inner, 0)[1].grad["weights"]


def train(made, params, adam, steps, weights):
    for step in steps:
        rows = batch(step)
        losses = made.task.row_losses(params, rows)
        adam.zero_grad()
        (weights[rows] * losses).mean().backward()
        adam.step()


def differences(made, steps, size):
    """Return dF/dw by central differences, after training by torch.optim; zeros elsewhere."""
    start = made.task.init(None)[0]
    slopes = torch.zeros(ROWS, dtype=next(iter(start.values())).dtype)

    def optimizer(values):
        params = {k: v.detach().clone().requires_grad_() for k, v in values.items()}
        return params, torch.optim.AdamW(params.values(), lr=LR, weight_decay=0.0)

    warm, adam = optimizer(start)
    train(made, warm, adam, range(WARM), torch.ones_like(slopes))
    for i in {j for k in range(steps) for j in batch(WARM + k).tolist()}:
        ends = []
        for sign in (1, -1):
            params, again = optimizer(warm)
            again.load_state_dict(copy.deepcopy(adam.state_dict()))
            weights = torch.ones_like(slopes)
            weights[i] += sign * size
            train(made, params, again, range(WARM, WARM + steps), weights)
            with torch.no_grad():
                ends.append(made.task.meta_losses(params, torch.arange(16)).mean())
        slopes[i] = (ends[0] - ends[1]) / (2 * size)
    return slopes


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_row_weights_agree_with_differences_in_double_precision(kind):
    made = problem(kind, {**GPT2, "classifier_dropout": 0.0}, torch.float64)
    two, one = (differences(made, steps, 1e-4) for steps in (2, 1))
    assert int((two != 0).sum()) == 16
    assert error(hypergradient(made, Unroll(2)), two) < 1e-6
    assert error(hypergradient(made, OneStep(1)), one) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_row_weights_of_a_llama_agree_with_differences(kind, monkeypatch):
    """Differences need float64 throughout: norms and softmax of transformers are in float32."""
    coarse = hypergradient(problem(kind, LLAMA), Unroll(2))
    softmax = torch.nn.functional.softmax

    def norm(module, x):
        return module.weight * x * torch.rsqrt(x.square().mean(-1, True) + module.variance_epsilon)

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", norm)
    monkeypatch.setattr("torch.nn.functional.softmax", lambda x, dim, **_: softmax(x, dim))
    made = problem(kind, LLAMA, torch.float64)
    exact = hypergradient(made, Unroll(2))
    assert error(exact, differences(made, 2, 1e-4)) < 1e-6
    assert error(coarse.double(), exact) < 1e-4


@pytest.mark.slow
def test_one_step_differentiates_fused_attention():
    """Whose kernels have no derivative in forward mode."""
    made, plain = problem("sft", LLAMA, attention="sdpa"), problem("sft", LLAMA)
    expected = hypergradient(plain, OneStep(1))
    torch.testing.assert_close(hypergradient(made, OneStep(1)), expected, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(hypergradient(made, Unroll(1)), expected, rtol=1e-3, atol=1e-8)
