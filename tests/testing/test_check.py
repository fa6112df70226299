"""The check itself: right where the answer is known, loud where an estimator is wrong."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.engine.random import Draw, generator
from metaopt.estimators import (
    Exact,
    FiniteDifference,
    Identity,
    Implicit,
    Score,
    Unroll,
)
from metaopt.problems.examples import Quadratic, Ridge
from metaopt.testing import check_hypergradient, reference
from metaopt.testing.meter import PeakMemory
from metaopt.testing.precision import in_float64, with_one_batch


class Dropped(GradientProblem):
    """Row weights of a network with dropout, in float32, on batches that are drawn."""

    def __init__(self, dropout=0.1):
        self.inner_optimizer = SGD(lr=0.1)
        draw = generator(0)
        self.x = torch.randn(60, 8, generator=draw)
        self.y = torch.randint(3, (60,), generator=draw)
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(8, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 3)
        )

    def init_outer(self, generator):
        return {"weight": torch.zeros(30)}

    def init_params(self, outer, generator):
        return split_module(self.model)[0]

    def inner_batch(self, draw):
        return torch.randperm(30, generator=draw.generator)[:20]

    def outer_batch(self, draw):
        return 30 + torch.randperm(30, generator=draw.generator)[:20]

    def losses(self, inner, rows):
        logits = functional_call(self.model, inner, self.x[rows])
        return nn.functional.cross_entropy(logits, self.y[rows], reduction="none")

    def inner_loss(self, outer, inner, batch):
        return (outer["weight"][batch].sigmoid() * self.losses(inner, batch)).mean()

    def outer_loss(self, outer, inner, batch):
        return self.losses(inner, batch).mean()


class Scaled(Implicit):
    """An estimator that is wrong by a factor."""

    def __call__(self, loop, outer, inner, key):
        inner, feedback = super().__call__(loop, outer, inner, key)
        vars(feedback)["grad"] = tree.scale(feedback.grad, -3.0)
        return inner, feedback


def rows_of(problem, estimators, **settings):
    return {(r.estimator, r.warm): r for r in check_hypergradient(problem, estimators, **settings)}


@pytest.mark.slow
def test_exact_estimators_have_no_error():
    estimators = {"unroll": Unroll(400), "exact": Implicit(Exact()), "wrong": Scaled(Exact())}
    rows = rows_of(Quadratic(inner_optimizer=SGD(lr=1.0)), estimators, steps=400)
    for name in ("unroll", "exact"):
        row = rows[name, False]
        assert row.closed_error < 1e-9
        assert row.error < 1e-9
        assert row.cosine == pytest.approx(1.0)
    wrong = rows["wrong", False]
    assert wrong.cosine == pytest.approx(-1.0)
    assert wrong.error == pytest.approx(4.0, rel=1e-6)
    assert wrong.scaled_error < 1e-6


@pytest.mark.slow
def test_the_default_solver_on_ridge_cold_and_warm():
    rows = rows_of(Ridge(inner_optimizer=SGD(lr=0.8)), {"cg": Implicit()}, steps=650, warm_steps=20)
    assert rows["cg", False].closed_error < 0.1
    assert rows["cg", True].closed_error < 0.01
    assert rows["cg", False].cost["hvps"] == 7


def test_a_short_unroll_is_exact_for_its_own_length():
    estimators = {"unroll": Unroll(7), "identity": Implicit(Identity(), inner_steps=7)}
    rows = rows_of(Ridge(), estimators, steps=30, reference_steps=7)
    assert rows["unroll", False].error < 1e-12
    assert rows["identity", False].error > 0.1


def test_float32_is_compared_with_float64():
    rows = rows_of(Dropped(), {"unroll": Unroll(5)}, steps=10, reference_steps=5)
    assert 1e-9 < rows["unroll", False].error < 1e-5, "same masks, another precision"


def test_a_finite_difference_keeps_its_cosine_under_dropout():
    problem = with_one_batch(Dropped(dropout=0.1), 0)
    phi = problem.init_outer(generator(0))
    inner = InnerLoop(problem).start(phi, None, 0)
    exact = in_float64(problem)
    expected = Implicit(Identity())(
        InnerLoop(exact),
        tree.map_tensors(torch.Tensor.double, phi),
        InnerLoop(exact).start(phi, None, 0),
        5,
    )[1].grad["weight"]
    estimate = FiniteDifference()(InnerLoop(problem), phi, inner, 5)[1].grad["weight"].double()
    assert nn.functional.cosine_similarity(estimate, expected, dim=0) > 0.95


def test_problem_and_estimators_are_left_as_they_were():
    problem, estimator = Dropped(), Implicit()
    before = dict(vars(problem))
    check_hypergradient(problem, {"cg": estimator}, steps=5, warm_steps=2)
    assert vars(problem) == before
    assert estimator.state_dict() == Implicit().state_dict()
    assert problem.model[0].weight.dtype == torch.float32


def test_batches_are_fixed_and_cast():
    problem = in_float64(with_one_batch(Dropped(), 3))
    a, b = (problem.inner_batch(Draw(i)) for i in (1, 2))
    assert torch.equal(a, b)
    assert problem.x.dtype == problem.model[0].weight.dtype == torch.float64
    assert not torch.equal(*(Dropped().inner_batch(Draw(i)) for i in (1, 2)))


def test_what_gives_no_gradient_says_so():
    rows = rows_of(Ridge(), {"score": Score(), "ok": Unroll(1)}, steps=5)
    assert "no gradient" in rows["score", False].refused
    assert rows["ok", False].refused is None


@pytest.mark.parametrize("settings", [{"steps": -1}, {"reference_steps": 0}, {"warm_steps": -1}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        check_hypergradient(Ridge(), {}, **settings)


def test_other_problems_are_refused():
    with pytest.raises(TypeError, match="GradientProblem"):
        check_hypergradient(object(), {})


class Broken(Unroll):
    """An estimator that torch stops, or that returns NaN."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def __call__(self, loop, outer, inner, key):
        if self.error:
            raise self.error
        inner, feedback = super().__call__(loop, outer, inner, key)
        vars(feedback)["grad"] = tree.scale(feedback.grad, float("nan"))
        return inner, feedback


def test_a_failure_of_one_estimator_is_a_line_of_the_table():
    broken = {
        "torch": Broken(RuntimeError("derivative for aten::flash is not implemented\nmore")),
        "bug": Broken(KeyError("w")),
        "nan": Broken(),
    }
    rows = rows_of(Quadratic(), {**broken, "ok": Unroll()}, steps=3)
    reasons = {name: rows[name, False].refused for name in broken}
    assert reasons == {
        "torch": "RuntimeError: derivative for aten::flash is not implemented",
        "bug": "KeyError: 'w'",
        "nan": "gives a gradient that is not finite.",
    }
    assert rows["ok", False].error is not None


def test_the_reference_is_held_against_differences_of_whole_runs(monkeypatch):
    good = rows_of(Ridge(), {"unroll": Unroll(5), "wrong": Scaled(Exact())}, steps=5)
    (distance,) = re.findall(r"are (\S+) from r$", good["unroll", False].reference)
    assert float(distance) < 1e-8
    assert good["unroll", False].difference_error < 1e-8
    assert good["wrong", False].difference_error > 0.5
    # A reference by code that is wrong is said to be wrong, and no row agrees with both.
    monkeypatch.setattr(reference, "Unroll", lambda *_, **__: Scaled(Exact(), inner_steps=5))
    bad = rows_of(Ridge(), {"unroll": Unroll(5)}, steps=5)["unroll", False]
    assert "from r: wrong, unless a loss detaches on purpose" in bad.reference
    assert bad.error > 0.5
    assert bad.difference_error < 1e-8


class Square(torch.autograd.Function):
    """A square with a first derivative alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("Square has no second derivative")
        return 2 * ctx.saved_tensors[0] * grad


class Once(Quadratic):
    """A problem without second derivatives."""

    def inner_loss(self, outer, inner, batch):
        loss = super().inner_loss(outer, inner, batch)
        return loss + 0.05 * sum(Square.apply(v).sum() for v in inner.params.values())


def test_without_a_reference_the_differences_remain():
    estimators = {"unroll": Unroll(2), "difference": FiniteDifference(inner_steps=2)}
    rows = rows_of(Once(), estimators, steps=2, warm_steps=2)
    assert "no second derivative" in rows["unroll", False].refused
    row = rows["difference", False]
    assert row.reference.startswith("none through 2 inner steps")
    assert row.cosine is None
    assert 0.1 < row.difference_error < 1.0
    assert rows["rows marked warm", True].refused.startswith("no solve moves phi along. Runtime")


def test_decay_that_no_solve_can_state_costs_the_warm_rows_alone():
    problem = Ridge(inner_optimizer=AdamW(lr=0.1, weight_decay=0.1))
    rows = rows_of(problem, {"unroll": Unroll(3), "cg": Implicit()}, steps=3, warm_steps=2)
    assert rows["unroll", False].difference_error < 1e-7
    assert "AdamW" in rows["cg", False].refused
    assert "AdamW" in rows["rows marked warm", True].refused


class Coarse(Ridge):
    def inner_loss(self, outer, inner, batch):
        return super().inner_loss(outer, inner, batch).float()


def test_a_loss_that_leaves_float64_is_refused():
    with pytest.raises(ValueError, match=r"inner_loss of Coarse is torch.float32.*\.float\(\)"):
        check_hypergradient(Coarse(), {"unroll": Unroll(3)}, steps=3)


def test_modules_in_lists_are_cast_and_shared_ones_stay_shared():
    problem = Dropped()
    problem.parts, problem.same = [nn.Linear(2, 2)], problem.model
    twin = in_float64(problem)
    assert twin.parts[0].weight.dtype == torch.float64
    assert twin.same is twin.model
    assert problem.parts[0].weight.dtype == torch.float32


class Stubborn(Ridge):
    def inner_loss(self, outer, inner, batch):
        return super().inner_loss(outer, inner, batch) + inner["weight"] @ torch.zeros(20)


def test_a_problem_that_does_not_cast_needs_a_twin():
    stubborn = Stubborn(dtype="float32")
    with pytest.raises(ValueError, match="exact="):
        check_hypergradient(stubborn, {"unroll": Unroll(3)}, steps=3)
    row = check_hypergradient(stubborn, {"unroll": Unroll(3)}, steps=0, exact=Ridge(),
                              reference_steps=3)[0]  # fmt: skip
    assert row.error < 1e-5


def test_peak_memory_counts_what_lives_together():
    mib = 2**20
    x = torch.ones(mib // 4)
    with PeakMemory() as once:
        for _ in range(5):
            x + 1
    with PeakMemory() as together:
        held = [x + i for i in range(5)]
    with PeakMemory() as views:
        [x.view(2, -1), x[1:], x.detach()]
    assert (once.peak, together.peak, views.peak) == (mib, 5 * mib, 0)
    assert together.live == 5 * mib
    del held
    assert together.live == 0


def test_peak_memory_grows_with_the_unrolled_steps():
    rows = rows_of(Dropped(), {"short": Unroll(2), "long": Unroll(20)}, steps=2)
    assert rows["long", False].peak_bytes > 5 * rows["short", False].peak_bytes
