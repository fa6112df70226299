"""betty-ml as an independent oracle: where both engines agree, and what is refused."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from betty_cases import Reweighting, descent, error, gradient, solved

from metaopt import backends
from metaopt.backends.betty import BettyEngine, BettyHypergradient, translate
from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.schedules import StepDecay
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    FiniteDifference,
    Identity,
    Implicit,
    Neumann,
    Sama,
    Score,
    Unroll,
)
from metaopt.problems.examples import Ridge

pytest.importorskip("betty")


def both(problem, estimator, steps=4):
    """Return metaopt's and betty's engine after the same number of outer steps."""
    ours = Engine(problem, estimator, descent(), outer_steps=steps, seed=5)
    theirs = BettyEngine(problem, estimator, descent(), outer_steps=steps, seed=5)
    gradients = [(f.grad, g.grad) for (_, f), (_, g) in zip(list(ours), list(theirs), strict=True)]
    return ours, theirs, gradients


SOLVES = [Identity(), Neumann(1, 0.25), Neumann(8, 0.125)]


@pytest.mark.parametrize("solve", SOLVES, ids=["identity", "one term", "eight terms"])
def test_ridge_agrees_to_round_off(solve):
    ours, theirs, gradients = both(Ridge(), Implicit(solve, inner_steps=3))
    assert all(error(g, f) < 1e-11 for f, g in gradients)
    assert error(theirs.inner.params, ours.inner.params) < 1e-11


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.1, momentum=0.9, nesterov=True, clip_norm=0.5),
        SGD(lr=0.1, groups=[{"match": "^0", "lr": 0.01}]),
        Adam(lr=1e-2, schedule=StepDecay([4], 0.1)),
        AdamW(lr=1e-2, weight_decay=0.0),
    ],
    ids=["clipped nesterov", "groups", "scheduled adam", "adamw"],
)
def test_a_network_agrees_under_every_inner_optimizer(optimizer):
    problem = Reweighting(optimizer, dropout=0.3, norm=True)
    ours, theirs, gradients = both(problem, Implicit(Neumann(4, 0.125), inner_steps=3))
    assert all(error(g, f) < 1e-9 for f, g in gradients)
    assert error(theirs.inner.params, ours.inner.params) < 1e-9
    assert theirs.inner.step == ours.inner.step == 12
    assert theirs.ledger.spent["inner_steps"] == ours.ledger.spent["inner_steps"]


def test_betty_cannot_solve_where_we_can():
    problem = Ridge(inner_optimizer=SGD(lr=0.8))
    phi, inner = solved(problem, 750)
    closed = problem.hypergradient(phi)
    ours = Implicit(ConjugateGradient(20, damping=0.0, tolerance=0.0))
    betty = {n: error(gradient(BettyHypergradient("cg", n), problem, phi, inner), closed)
             for n in (1, 10, 20)}  # fmt: skip
    assert error(gradient(ours, problem, phi, inner), closed) < 1e-6
    assert betty[20] > betty[10] > 0.5, "betty's fault is gone: translate ConjugateGradient"
    with pytest.raises(ValueError, match="engine=metaopt"):
        translate(ours)


@pytest.mark.slow
def test_bettys_default_step_diverges_and_ours_is_passed_on():
    problem = Ridge(spread=1.0, rows=30, features=20, inner_optimizer=SGD(lr=0.4))
    phi, inner = solved(problem, 1500)
    closed = problem.hypergradient(phi)
    steep = float(torch.linalg.eigvalsh(problem.hessian(phi))[-1])
    assert steep > 2
    default = gradient(BettyHypergradient("neumann", 20), problem, phi, inner)
    passed = translate(Implicit(Neumann(2000, 1 / steep)))
    assert error(default, closed) > 1
    assert error(gradient(passed, problem, phi, inner), closed) < 1e-6
    with pytest.raises(ValueError, match="cannot find a step"):
        translate(Implicit(Neumann(20)))


def test_a_finite_difference_keeps_its_radius():
    problem = Reweighting(SGD(lr=0.1), dropout=0.1)
    _, _, gradients = both(problem, FiniteDifference(epsilon=1e-2, inner_steps=2))
    assert all(error(g, f) < 1e-9 for f, g in gradients)
    _, _, gradients = both(problem, FiniteDifference())
    assert all(error(g, f) < 1e-6 for f, g in gradients)


def test_a_resumed_run_is_bitwise_equal():
    def engine():
        problem = Reweighting(Adam(lr=1e-2), dropout=0.2, norm=True)
        return BettyEngine(problem, FiniteDifference(inner_steps=2), descent(), outer_steps=4)

    whole, first, second = engine(), engine(), engine()
    list(whole)
    steps = iter(first)
    next(steps)
    next(steps)
    second.load_state_dict(tree.clone(first.state_dict()))
    list(second)
    for resumed, expected in [
        (second.inner.params, whole.inner.params),
        (second.optimizer.solution, whole.optimizer.solution),
    ]:
        assert all(torch.equal(resumed[k], v) for k, v in expected.items())


@pytest.mark.parametrize(
    "estimator", [Unroll(2), Sama(), Score(), Implicit(Exact()), Implicit(Identity(), tasks=2)]
)
def test_what_betty_has_not_is_refused(estimator):
    with pytest.raises(ValueError, match="engine=metaopt"):
        BettyEngine(Ridge(), estimator, descent(), outer_steps=1)


@pytest.mark.slow
def test_the_advice_works_as_typed(metaopt):
    ridge = ["problem=ridge", "engine=betty", "debug=tiny", "figures=false"]
    refused = metaopt(*ridge)
    assert refused.code == 1
    options = re.findall(r"estimator=\w+(?: estimator\.\S+)?", refused.err)
    assert len(options) == 3
    for option in options:
        done = metaopt(*ridge, *option.split())
        assert done.code == 0, done.err
    assert "estimator.solve.step=" in metaopt(*ridge, "estimator=implicit_neumann").err


def test_a_problem_without_gradients_is_refused():
    with pytest.raises(TypeError, match="GradientProblem"):
        BettyEngine(object(), Implicit(Identity()), descent(), outer_steps=1)


def test_an_unused_inner_parameter_is_refused_where_betty_crashes():
    problem = Reweighting(SGD(lr=0.1), spare=True)
    with pytest.raises(ValueError, match="without curvature: spare"):
        BettyEngine(problem, Implicit(Identity()), descent(), outer_steps=1)
    _, _, gradients = both(problem, FiniteDifference())
    assert all(error(g, f) < 1e-6 for f, g in gradients)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"type": "reinforce"}, "type"), ({"type": "cg", "iterations": 0}, "iterations"),
     ({"type": "darts", "inner_steps": 0}, "inner_steps")],
)  # fmt: skip
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        BettyHypergradient(**settings)


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.delattr(backends, "betty_levels", raising=False)
    monkeypatch.setitem(sys.modules, "metaopt.backends.betty_levels", None)
    with pytest.raises(ImportError, match=r"pip install .*betty-ml"):
        BettyHypergradient("darts")


def test_nothing_is_printed(capsys):
    list(BettyEngine(Ridge(), Implicit(Identity()), descent(), outer_steps=2))
    assert capsys.readouterr() == ("", "")


def test_a_solve_of_betty_refuses_weight_decay():
    problem = Reweighting(SGD(lr=0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="minimum of inner_loss alone"):
        BettyHypergradient("neumann").check(InnerLoop(problem))
