"""How training answers a step of the outer optimizer, and what is said about it."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from benchmarks.smoothness import Weighted, gradient_error
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.engine.random import fold, generator
from metaopt.estimators import EvolutionStrategies, Implicit, Score, Unroll
from metaopt.optimizers import Descent, MirrorDescent, Search
from metaopt.problems.examples import Quadratic, Ridge
from metaopt.testing import Smoothness, check_smoothness
from metaopt.testing.smoothness import metasmoothness

FINE = Smoothness(200, 0.8, 0.999, 1.0, -0.02, -0.019, 0.999, 16, 2.0, "float64", ("wait",))


def test_a_rough_theta_whose_loss_is_predicted_is_not_called_unpredictable():
    rough = dataclasses.replace(FINE, at_step=0.4, at_fraction=0.4, correlation=0.96)
    assert "the hypergradient predicts F (correlation 0.96)" in rough.verdict.text
    assert "says little" not in rough.verdict.text
    assert "says little" in dataclasses.replace(rough, correlation=0.2).verdict.text


def points(*values):
    return [{"theta": torch.tensor(v)} for v in values]


def test_metasmoothness_weighs_agreeing_signs_by_how_far_an_entry_moves():
    assert metasmoothness(*points([0.0, 0.0], [1.0, 1.0], [2.0, 4.0])) == 1
    assert metasmoothness(*points([0.0], [0.0], [0.0])) == 1
    # Entry 1 moves by 2 along a line, entry 2 by 1 forth and by 3 back: |d1 + d2| = 2 for each.
    assert metasmoothness(*points([0.0, 0.0], [1.0, 1.0], [2.0, -2.0])) == 0


def test_smooth_training_is_predicted():
    smoothness = check_smoothness(Weighted(SGD(lr=0.1)), Unroll(50), Descent("adam", lr=0.1))
    assert smoothness.at_step > 0.99
    assert smoothness.at_fraction > 0.999
    assert smoothness.correlation > 0.99
    assert smoothness.actual == pytest.approx(smoothness.predicted, rel=0.2)
    assert smoothness.adjoint_growth < 1
    assert smoothness.dtype == "float64"
    assert smoothness.verdict.level == "fine"


@pytest.mark.slow
def test_rough_training_is_refused_although_its_gradient_is_exact():
    problem = Weighted(AdamW(lr=0.1))
    smoothness = check_smoothness(problem, Unroll(50), Descent("adam", lr=0.3))
    assert abs(smoothness.correlation) < 0.4  # 0.18 over 16 retrainings
    assert smoothness.at_step < 0.3  # -0.02
    assert smoothness.adjoint_growth > 100
    assert abs(smoothness.actual) < 0.15 * abs(smoothness.predicted)  # 0.06
    assert smoothness.verdict.level == "error"
    assert smoothness.cures[:2] == (
        "a larger eps of the inner Adam",
        "a smaller inner learning rate",
    )
    assert gradient_error(problem) < 1e-6  # 1e-10 to 6e-10


def test_the_prediction_is_the_taylor_expansion_where_theta_is_linear_in_phi():
    problem, steps = Quadratic(), 5
    smoothness = check_smoothness(problem, Unroll(steps), Descent("sgd", lr=1e-5))
    assert smoothness.at_step == smoothness.at_fraction == 1
    assert smoothness.actual == pytest.approx(smoothness.predicted, rel=1e-3)
    loop, key = InnerLoop(problem), fold(0, 0)
    outer = problem.init_outer(generator(fold(0, "outer")))
    _, feedback = Unroll(steps)(loop, outer, loop.start(outer, None, key), key)
    assert smoothness.step == pytest.approx(1e-5 * float(tree.norm(feedback.grad)))
    assert smoothness.predicted == pytest.approx(-1e-5 * float(tree.norm(feedback.grad)) ** 2)


def test_the_prediction_is_that_of_the_run_whatever_gives_the_step():
    smoothness = check_smoothness(Quadratic(), Implicit(inner_steps=5), Descent("sgd", lr=1e-5))
    assert smoothness.actual == pytest.approx(smoothness.predicted, rel=1e-3)


def test_an_optimizer_that_accumulates_takes_the_same_step():
    once = check_smoothness(Quadratic(), Unroll(5), Descent("sgd", lr=1e-2), retrainings=0)
    thrice = check_smoothness(
        Quadratic(), Unroll(5), Descent("sgd", lr=1e-2, accumulate=3), retrainings=0
    )
    assert thrice.step == pytest.approx(once.step)
    assert once.correlation is None
    assert once.retrainings == 0
    assert once.verdict.level == "fine"


def test_phi_stays_where_the_optimizer_may_lead_it():
    class Mixture(Weighted):
        def init_outer(self, generator):
            return {"weight": torch.full((self.examples,), 1 / self.examples)}

        def inner_loss(self, outer, inner, batch):
            weight = outer["weight"].detach()
            assert (weight > 0).all()
            assert weight.sum() == pytest.approx(1)
            return (outer["weight"] * self.losses(inner, batch)).sum()

    smoothness = check_smoothness(Mixture(SGD(lr=0.1)), Unroll(3), MirrorDescent(lr=50.0))
    assert smoothness.correlation > 0.99


def test_a_problem_that_leaves_float64_is_retrained_as_it_is():
    class Leaving(Weighted):
        def outer_loss(self, outer, inner, batch):
            return super().outer_loss(outer, inner, batch).float()

    smoothness = check_smoothness(Leaving(SGD(lr=0.1)), Unroll(3), Descent("adam", lr=0.1))
    assert smoothness.dtype == "float32"
    assert smoothness.at_step > 0.99


def test_a_prediction_that_cannot_be_made_is_explained():
    class Decided(Weighted):
        hard_decisions = True

    problem, strategies = Decided(SGD(lr=0.1)), EvolutionStrategies(pairs=1, inner_steps=2)
    smoothness = check_smoothness(problem, strategies, Descent("sgd", lr=0.1))
    assert smoothness.predicted is smoothness.correlation is None
    assert "decisions without a derivative" in smoothness.missing
    with pytest.raises(ValueError, match="Score gives no gradient"):
        check_smoothness(problem, Score(2), Descent("sgd", lr=0.1))


def test_parts_are_left_as_they_were():
    estimator, optimizer = Implicit(inner_steps=5), Descent("adam", lr=0.1)
    before = copy.deepcopy(vars(estimator)), copy.deepcopy(vars(optimizer))
    check_smoothness(Quadratic(), estimator, optimizer, retrainings=4)
    assert vars(estimator).keys() == before[0].keys()
    assert optimizer.solution == before[1]["_outer"] == {}
    assert estimator.state_dict() == Implicit(inner_steps=5).state_dict()


@pytest.mark.parametrize(
    ("optimizer", "settings", "message"),
    [
        (Search(), {}, "Search takes no step along a hypergradient"),
        (Descent("sgd", lr=0.0), {}, "does not move phi"),
        (Descent("sgd", lr=0.1), {"seconds": 0.0}, "more than the 0 s allowed"),
        (Descent("sgd", lr=0.1), {"retrainings": -1}, "retrainings must be >= 0; got -1"),
    ],
)
def test_what_cannot_be_judged_is_refused(optimizer, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_smoothness(Quadratic(), Unroll(5), optimizer, **settings)


def test_training_that_diverges_is_refused_or_judged_an_error():
    with pytest.raises(ValueError, match="hypergradient after 400 inner steps is not finite"):
        check_smoothness(Ridge(inner_optimizer=SGD(lr=1e3)), Unroll(400), Descent("sgd", lr=0.1))
    smoothness = check_smoothness(Ridge(), Unroll(5), Descent("sgd", lr=1e9))
    assert not math.isfinite(smoothness.correlation)
    assert smoothness.verdict.level == "error"


def judged(**numbers):
    return dataclasses.replace(FINE, **numbers).verdict


def test_the_correlation_decides_and_low_smoothness_warns():
    assert FINE.verdict.level == "fine"
    assert judged(correlation=0.95).level == "warning"
    assert judged(correlation=0.5).level == "error"
    assert judged(correlation=math.nan).level == "error"
    assert judged(at_step=0.5).level == "warning"
    assert judged(at_step=math.nan).level == "warning"
    assert judged(at_step=0.5, correlation=None).level == "warning"
    assert judged(correlation=None).level == "fine"


class Detached(Weighted):
    """g treats half of a weight's effect as constant."""

    def inner_loss(self, outer, inner, batch):
        half = (outer["weight"] + outer["weight"].detach()) / 2
        return super().inner_loss({**outer, "weight": half}, inner, batch)


def test_a_prediction_that_no_step_length_mends_is_told_from_one_that_bends():
    problem, optimizer = Detached(SGD(lr=0.1)), Descent("adam", lr=0.01)
    smoothness = check_smoothness(problem, Unroll(5), optimizer, retrainings=0)
    assert smoothness.actual == pytest.approx(2 * smoothness.predicted, rel=0.05)
    assert smoothness.actual_at_fraction == pytest.approx(0.02 * smoothness.predicted, rel=0.01)
    assert not smoothness.fits_at_fraction
    verdict = dataclasses.replace(smoothness, correlation=0.5).verdict.text
    assert "look for what a loss detaches" in verdict
    assert "outer_lr" not in verdict
    long = check_smoothness(Quadratic(), Unroll(5), Descent("sgd", lr=1e2), retrainings=0)
    assert abs(long.actual / long.predicted - 1) > 1
    assert long.fits_at_fraction
    assert judged(actual=-0.04, actual_at_fraction=-2e-4).level == "fine"


def test_a_step_that_is_too_long_is_told_from_rough_training():
    bent = judged(correlation=0.5).text
    assert bent.endswith("and F bends over the step. Take a smaller outer_lr.")
    assert "In this order: a smaller outer_lr; wait." in judged(correlation=0.5, at_step=0.5).text
    rough = judged(correlation=0.5, at_fraction=0.2).text
    assert "training is rough even at a hundredth of it" in rough
    assert rough.endswith("Take wait.")
