"""Unroll against closed forms, finite differences and itself under other schedules."""

import pytest
import torch
import torch.nn.functional as F
from cases import Classification, relative_error

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.schedules import Cosine
from metaopt.estimators import OneStep, Unroll
from metaopt.problems.examples import Ridge
from metaopt.testing.trees import identical


class Classifier(GradientProblem):
    """Row weights for a small network; `dead` turns every hidden unit off."""

    def __init__(self, optimizer, dead=False, dropout=0.0):
        self.inner_optimizer = optimizer
        self.dead, self.dropout = dead, dropout
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(12, 4, generator=draw, dtype=torch.float64)
        self.y = torch.randint(3, (12,), generator=draw)

    def init_outer(self, generator):
        return {"weight": torch.linspace(-1, 1, 12, dtype=torch.float64)}

    def init_params(self, outer, generator):
        shapes = {"a": (8, 4), "b": (8,), "c": (3, 8), "unused": (2,)}
        params = {
            k: 0.5 * torch.randn(s, generator=generator, dtype=torch.float64)
            for k, s in shapes.items()
        }
        if self.dead:
            params["b"] -= 100.0
        return params

    def inner_batch(self, draw):
        return torch.randperm(12, generator=draw.generator)[:8]

    def outer_batch(self, draw):
        return torch.arange(12)

    def logits(self, inner, rows):
        hidden = F.relu(self.x[rows] @ inner["a"].T + inner["b"])
        return F.dropout(hidden, self.dropout) @ inner["c"].T

    def inner_loss(self, outer, inner, rows):
        losses = F.cross_entropy(self.logits(inner, rows), self.y[rows], reduction="none")
        return (outer["weight"][rows].sigmoid() * losses).mean()

    def outer_loss(self, outer, inner, rows):
        return (
            F.cross_entropy(self.logits(inner, rows), self.y[rows])
            + outer["weight"].square().mean()
        )


OPTIMIZERS = {
    "sgd": SGD(lr=0.3, weight_decay=0.01, schedule=Cosine(20), clip_norm=0.5),
    "nesterov": SGD(lr=0.1, momentum=0.9, nesterov=True),
    "adam": Adam(lr=0.05),
    "adamw": AdamW(lr=0.05, groups=[{"match": "b", "weight_decay": 0.0}]),
}

SCHEDULES = [
    {"segments": 2}, {"segments": 5}, {"segments": 13}, {"segments": 40}, {"schedule": "segments"},
    {"schedule": "revolve", "snapshots": 1}, {"schedule": "revolve", "snapshots": 3},
    {"schedule": "revolve"},
]  # fmt: skip


def start(problem):
    outer = problem.init_outer(None)
    return outer, InnerLoop(problem).start(outer, None, 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_unroll_equals_a_finite_difference_of_the_whole_run(name, dropout):
    problem = Classifier(OPTIMIZERS[name], dropout=dropout)
    outer, inner = start(problem)
    grad = Unroll(6)(InnerLoop(problem), outer, inner, 3)[1].grad["weight"]

    def value(weight):
        return Unroll(6)(InnerLoop(problem), {"weight": weight}, inner, 3)[1].value

    direction = torch.linspace(1, 2, 12, dtype=torch.float64)
    step = 1e-6 * direction
    slope = (value(outer["weight"] + step) - value(outer["weight"] - step)) / 2e-6
    torch.testing.assert_close(grad @ direction, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("settings", SCHEDULES)
def test_schedules_agree_to_round_off(name, settings):
    problem = Classifier(OPTIMIZERS[name], dropout=0.1)
    outer, inner = start(problem)
    end, whole = Unroll(13, schedule="whole")(InnerLoop(problem), outer, inner, 3)
    other, parts = Unroll(13, **settings)(InnerLoop(problem), outer, inner, 3)
    assert relative_error(parts.grad, whole.grad) < 1e-13
    assert torch.equal(parts.value, whole.value)
    assert identical(end, other)
    growth = [x.metrics["inner/adjoint_growth"] for x in (whole, parts)]
    torch.testing.assert_close(*growth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_equals_unroll_through_any_optimizer(name):
    problem = Classifier(OPTIMIZERS[name], dropout=0.1)
    outer, inner = start(problem)
    for steps in (1, 3):
        end, exact = Unroll(steps, truncation=1)(InnerLoop(problem), outer, tree.clone(inner), 3)
        other, feedback = OneStep(steps)(InnerLoop(problem), outer, tree.clone(inner), 3)
        torch.testing.assert_close(feedback.grad, exact.grad, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(feedback.value, exact.value)
        torch.testing.assert_close(other.params, end.params)


@pytest.mark.parametrize("pattern", ["rows", "net", "no_grad", "direct"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_one_step_respects_the_constants_of_a_loss(pattern, batch_norm):
    problem = Classification(pattern=pattern, batch_norm=batch_norm, dropout=0.1)
    outer = problem.init_outer(torch.Generator().manual_seed(0))
    inner = InnerLoop(problem).start(outer, None, 0)
    _, exact = Unroll(1)(InnerLoop(problem), outer, tree.clone(inner), 3)
    _, feedback = OneStep()(InnerLoop(problem), outer, tree.clone(inner), 3)
    assert relative_error(feedback.grad, exact.grad) < 1e-10


@pytest.mark.slow
def test_unroll_converges_to_the_closed_form():
    ridge = Ridge(inner_optimizer=SGD(lr=0.8))
    outer, inner = start(ridge)
    grad = Unroll(1500, schedule="segments")(InnerLoop(ridge), outer, inner, 0)[1].grad
    torch.testing.assert_close(grad, ridge.hypergradient(outer), rtol=1e-10, atol=1e-13)


def test_truncation_of_all_steps_is_the_full_unroll_and_of_one_is_not():
    ridge = Ridge(inner_optimizer=SGD(lr=0.5))
    outer, inner = start(ridge)
    full = Unroll(10)(InnerLoop(ridge), outer, tree.clone(inner), 0)[1].grad["log_penalty"]
    same = Unroll(10, truncation=10)(InnerLoop(ridge), outer, tree.clone(inner), 0)[1].grad[
        "log_penalty"
    ]
    short = Unroll(10, truncation=1)(InnerLoop(ridge), outer, tree.clone(inner), 0)[1].grad[
        "log_penalty"
    ]
    assert torch.equal(full, same)
    assert not torch.allclose(full, short, rtol=0.1)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_dead_units_give_no_nan_through_adam(name):
    problem = Classifier(OPTIMIZERS[name], dead=True)
    outer, inner = start(problem)
    grad = Unroll(4)(InnerLoop(problem), outer, inner, 0)[1].grad["weight"]
    assert torch.isfinite(grad).all()


def test_no_graph_is_kept_alive():
    problem = Classifier(Adam(lr=0.1))
    outer, inner = start(problem)
    inner, feedback = Unroll(3, segments=2)(InnerLoop(problem), outer, inner, 0)
    tensors = [*inner.params.values(), *inner.optimizer["mean"].values(), feedback.grad["weight"]]
    assert not any(t.requires_grad for t in [*tensors, feedback.value, inner.loss])


@pytest.mark.parametrize(
    "arguments",
    [
        {"inner_steps": 0},
        {"inner_steps": 3, "truncation": 4},
        {"segments": 0},
        {"segments": "many"},
        {"segments": 2, "memory_budget": 1.0},
        {"segments": 2, "schedule": "revolve"},
        {"segments": 2, "schedule": "whole"},
        {"schedule": "segments", "memory_budget": 1.0},
        {"schedule": "best"},
        {"schedule": "revolve", "snapshots": 0},
    ],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="Unroll"):
        Unroll(**arguments)
