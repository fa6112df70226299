"""Situations in which libraries for hypergradients were reported to be wrong, one by one.

The right value is that of a plain loop in torch, or of differences of whole runs.
"""

import copy
import gc

import pytest
import torch
from torch import nn
from weighted import Weighted

from metaopt.engine import Engine, tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.random import generator
from metaopt.estimators import (
    Direct,
    Exact,
    FiniteDifference,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    Neumann,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)
from metaopt.optimizers import Descent
from metaopt.testing import check_hypergradient, run_differences


def begin(problem):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    return loop, outer, loop.start(outer, None, 3)


def worst_error(problem, steps):
    """Return the largest distance of the exact estimators from differences of whole runs."""
    loop, outer, inner = begin(problem)
    differences = run_differences(loop, outer, inner, 3, steps)
    errors = []
    for estimator in (Unroll(steps), Unroll(steps, segments=2), Forward(steps)):
        estimator.check(loop)
        grad = estimator(loop, outer, tree.clone(inner), 3)[1].grad
        assert torch.isfinite(grad["weights"]).all()
        errors.append(differences.distance(grad))
    return max(errors)


def tanh():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.3, clip_norm=0.1),
        SGD(lr=0.3, clip_norm=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        Adam(lr=0.02, clip_norm=0.1),
        AdamW(lr=0.02, clip_norm=0.05),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_a_derivative_through_clipping(optimizer):
    """higher, issue 136."""
    assert worst_error(Weighted(tanh, optimizer), 6) < 1e-6


@pytest.mark.parametrize("optimizer", [Adam(lr=0.01), AdamW(lr=0.01, weight_decay=0.1)])
def test_gradients_of_zero_under_adam(optimizer):
    """torchopt, issue 26: the square root of a second moment of 0."""

    def dead_units():
        module = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
        nn.init.constant_(module[0].bias[:6].detach(), -50.0)
        return module

    assert worst_error(Weighted(dead_units, optimizer), 5) < 1e-5


class LastOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x[..., None])[0][:, -1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [Unroll(3), Unroll(3, segments=2), Implicit(inner_steps=3), Soba(), Penalty(inner_steps=3)],
    ids=["unroll", "segments", "implicit", "soba", "penalty"],
)
def test_memory_does_not_grow_with_outer_steps(estimator):
    """torchopt, issue 218: a graph that is kept from one outer step to the next."""
    problem = Weighted(LastOutput, Adam(lr=0.01))
    engine = Engine(problem, estimator, Descent("adam", lr=0.01, accumulate=3), outer_steps=24)
    sizes = {}
    for step, _ in engine:
        if step in (9, 24):
            gc.collect()
            held = (t for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
            sizes[step] = sum(t.numel() * t.element_size() for t in held)
    assert sizes[24] <= 1.02 * sizes[9]


def test_running_statistics_are_those_of_a_plain_loop():
    """higher, issues 55 and 103; learn2learn, issue 207."""

    def normalized():
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    problem = Weighted(normalized, SGD(lr=0.3), "train")
    loop, outer, start = begin(problem)
    plain = copy.deepcopy(problem.module).train()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.3)
    for k in range(4):
        batch = problem.inner_batch(loop.draw(start._replace(step=k), 3, k))
        sgd.zero_grad()
        problem.weighted_loss(outer, plain(problem.x[batch]), batch).backward()
        sgd.step()
    for estimator in (
        Unroll(4), Unroll(4, segments=2), Unroll(4, truncation=2), Forward(4), OneStep(4),
        FiniteDifference(inner_steps=4), Sama(inner_steps=4), Implicit(inner_steps=4),
        Penalty(inner_steps=4), Direct(4),
    ):  # fmt: skip
        inner, _ = estimator(loop, outer, tree.clone(start), 3)
        state = inner.params | inner.buffers
        for name, expected in plain.state_dict().items():
            torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-10)


class Fork(GradientProblem):
    """MAML: the initial value of a regression's weights."""

    warm_start = False
    inner_optimizer = SGD(lr=0.1)

    def __init__(self):
        self.x, self.xv = torch.randn(2, 10, 4, generator=generator(0), dtype=torch.float64)

    def init_outer(self, generator):
        return {"t": torch.full((4,), 0.3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in outer.items()}

    def inner_batch(self, draw):
        return self.x

    def outer_batch(self, draw):
        return self.xv

    def inner_loss(self, outer, inner, batch):
        return ((batch @ (inner["t"] - 1.0)) ** 2).mean()

    outer_loss = inner_loss


def test_a_learned_initial_value_is_right_or_refused():
    """optimistix, issue 54; GBML, issue 4: the derivative through theta_0 was silently 0."""
    loop, outer, inner = begin(Fork())
    differences = run_differences(loop, outer, inner, 3, 3)
    for estimator in (Unroll(3), Unroll(3, segments=2), Forward(3)):
        estimator.check(loop)
        grad = estimator(loop, outer, loop.start(outer, None, 3), 3)[1].grad
        assert differences.distance(grad) < 1e-8
    FirstOrder(3).check(loop)  # an approximation of its own, tested against its formula elsewhere
    for refusing in (
        OneStep(3), Implicit(inner_steps=3), Implicit(Identity(), inner_steps=3),
        Implicit(Neumann(), inner_steps=3), FiniteDifference(inner_steps=3), Direct(3),
        Sama(inner_steps=3), Soba(), Penalty(inner_steps=3), Unroll(3, truncation=2),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="holds theta_0 fixed"):
            refusing.check(loop)


class LateHead(nn.Module):
    """A factor that F alone reads, and a layer that nobody does."""

    def __init__(self):
        super().__init__()
        self.body, self.late = nn.Linear(5, 3), nn.Parameter(torch.ones(3))
        self.never = nn.Linear(4, 4)

    def forward(self, x):
        return self.body(x) if self.training else self.body(x) * self.late


@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.5, momentum=0.9, weight_decay=0.1), Adam(lr=0.05), AdamW(lr=0.05)],
    ids=["sgd", "adam", "adamw"],
)
def test_parameters_that_the_inner_loss_does_not_read(optimizer):
    """learn2learn, issues 314 and 363."""
    assert worst_error(Weighted(LateHead, optimizer), 3) < 1e-6


def test_a_solve_that_they_make_singular_is_a_line_of_the_table():
    estimators = {"unroll": Unroll(3), "exact": Implicit(Exact(), inner_steps=3)}
    problem = Weighted(LateHead, SGD(lr=0.5))
    unroll, exact = check_hypergradient(problem, estimators, steps=10, reference_steps=3)
    assert unroll.error < 1e-10
    assert "Hessian of the inner loss is singular" in exact.refused
