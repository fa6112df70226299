"""What a run says once of numbers that mean less than they seem to."""

import math
from functools import partial

import pytest
import torch

import metaopt
from benchmarks.smoothness import Weighted
from metaopt.engine.schedules import PowerDecay
from metaopt.optimizers import Mutation
from metaopt.problems.examples import Ridge
from metaopt.runs.warnings import DivergenceWarning, GrowthWarning


def test_a_growing_adjoint_is_said_once(capsys):
    warning = GrowthWarning()
    for step, growth in enumerate((0.5, math.nan, 9.9, 161.0, 1e9)):
        warning.log(step, {"outer/loss": 1.0, "inner/adjoint_growth": growth})
    warning.log(5, {"outer/loss": 1.0})
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("\n") == 1
    assert "at outer step 3 the adjoint grew 161-fold" in errors
    assert "metaopt-check with the keys of this run" in errors


@pytest.mark.parametrize(("rate", "warnings"), [(0.2, 1), (0.01, 0)])
def test_a_run_says_whether_its_adjoint_grows(rate, warnings, capsys):
    problem, optimizer = Weighted(metaopt.AdamW(lr=rate)), metaopt.Descent("sgd", lr=0.1)
    result = metaopt.run(problem, metaopt.Unroll(16), optimizer, 2, progress=False)
    growth = [line["inner/adjoint_growth"] for line in result.history]
    assert min(growth) > 10 if warnings else max(growth) < 10
    assert capsys.readouterr().err.count("the adjoint grew") == warnings


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ((0.5, 1e5, 2e6, 1e9), [2]),
        ((-40.0, 3e7, 5e7), [2]),
        ((1e9, 1e10, -1e20), []),
        ((math.nan, 1e12, 1.0), []),
        ((), []),
    ],
)
def test_an_outer_loss_that_has_grown_out_of_proportion_is_said_once(losses, steps, capsys):
    warning = DivergenceWarning()
    warning.log(0, {"outer/loss": losses[0]} if losses else {"inner/loss": 1e20})
    for step, loss in enumerate(losses[1:], 1):
        warning.log(step, {"outer/loss": loss})
    errors = capsys.readouterr().err
    for step in steps:
        assert f"at outer step {step} the outer loss was" in errors
    assert errors.count("the run has diverged") == len(steps)


@pytest.mark.parametrize(("rate", "warnings"), [(0.1, 0), (3.0, 1)])
def test_a_run_that_diverges_and_stays_finite_says_so(rate, warnings, capsys):
    problem = Ridge(inner_optimizer=metaopt.SGD(lr=rate))
    optimizer = metaopt.Descent("sgd", lr=0.1)
    result = metaopt.run(problem, metaopt.Direct(), optimizer, 40, progress=False)
    assert math.isfinite(result.history[-1]["outer/loss"])
    assert capsys.readouterr().err.count("the run has diverged") == warnings


@pytest.mark.parametrize(
    ("optimizer", "estimator", "restarts", "said"),
    [
        (metaopt.Random(), metaopt.Unroll(2), False, ["pays for a hypergradient"]),
        (metaopt.Random(), metaopt.Score(2), False, []),
        (metaopt.Search(Mutation()), metaopt.Score(2), True, ["favours later ones"]),
        (metaopt.Search(Mutation(), keep="latest"), metaopt.Score(2), True, []),
        (metaopt.Search(), metaopt.Unroll(2), True, []),
        (metaopt.Schedule(metaopt.optimizers.Constant()), metaopt.Score(2), True, []),
        (metaopt.Descent("sgd", lr=0.1), metaopt.Unroll(2), True, []),
    ],
)
def test_a_search_says_what_it_pays_for_nothing_and_what_it_compares(
    optimizer, estimator, restarts, said, tmp_path, capsys
):
    class Restarting(Ridge):
        warm_start = restarts

    run = partial(metaopt.run, Restarting(), estimator, optimizer, progress=False)
    run(3, folder=tmp_path / "run")
    errors = capsys.readouterr().err
    assert errors.count("Warning") == len(said)
    assert all(text in errors for text in said)
    metaopt.resume(
        tmp_path / "run", Restarting(), estimator=estimator, optimizer=optimizer, outer_steps=5,
        progress=False,
    )  # fmt: skip
    assert "Warning" not in capsys.readouterr().err


def test_a_diverged_run_that_is_continued_is_compared_with_its_start(tmp_path, capsys):
    roles = {"estimator": metaopt.Direct(), "optimizer": metaopt.Descent("sgd", lr=0.1)}
    problem = Ridge(inner_optimizer=metaopt.SGD(lr=3.0))
    metaopt.run(problem, outer_steps=40, folder=tmp_path / "run", progress=False, **roles)
    assert capsys.readouterr().err.count("the run has diverged") == 1
    metaopt.resume(tmp_path / "run", problem, outer_steps=41, progress=False, **roles)
    assert capsys.readouterr().err.count("at outer step 41 the outer loss was") == 1


SAID = "outer steps moved the outer variable by"


@pytest.mark.parametrize(
    ("optimizer", "steps", "warnings"),
    [
        (metaopt.Descent("sgd", lr=1e-7), 50, 1),
        (metaopt.Descent("sgd", lr=1e-7), 49, 0),
        (metaopt.Descent("sgd", lr=10.0), 50, 0),
        (metaopt.Descent("adam", lr=1e-9), 50, 1),
        (metaopt.Descent("adam", lr=1e-3), 50, 0),
        (metaopt.Descent("sgd", lr=1e-7, schedule=PowerDecay(0.5)), 50, 0),
        (metaopt.Descent(partial(torch.optim.SGD, lr=1e-7)), 50, 1),
        (metaopt.Descent("sgd", lr=1e-7, accumulate=25), 50, 1),
        (metaopt.Descent("adam", lr=1e-2, accumulate=25), 50, 0),  # phi moves at 25, not at 10
    ],
)
def test_a_run_says_once_that_its_steps_are_too_small(optimizer, steps, warnings, capsys):
    metaopt.run(Ridge(), metaopt.OneStep(), optimizer, steps, progress=False)
    errors = capsys.readouterr().err
    assert errors.count(SAID) == errors.count("optimizer=adam") == warnings


@pytest.mark.parametrize("lr", [1e-7, 1.0])
def test_a_control_whose_hypergradient_is_zero_is_not_told_of_small_steps(lr, capsys):
    optimizer = metaopt.Descent("sgd", lr=lr)
    result = metaopt.run(Ridge(), metaopt.Direct(), optimizer, 50, progress=False)
    assert result.history[-1]["outer/grad_norm"] == 0
    assert SAID not in capsys.readouterr().err


@pytest.mark.parametrize(("start", "warned"), [(0.0, 0), (1e3, 1)])
def test_a_small_step_is_measured_against_where_phi_starts(start, warned, capsys):
    class Shifted(Ridge):
        def init_outer(self, generator):
            return {k: v * 0 + start for k, v in super().init_outer(generator).items()}

        def inner_loss(self, outer, inner, batch):
            shifted = {k: v - start for k, v in outer.items()}
            return super().inner_loss(shifted, inner, batch)

    metaopt.run(Shifted(), metaopt.OneStep(), metaopt.Descent("adam", lr=1e-3), 50, progress=False)
    assert capsys.readouterr().err.count("a thousandth of its size, 1e+03") == warned


def test_a_run_that_is_extended_says_nothing_more(tmp_path, capsys):
    roles = {"estimator": metaopt.OneStep(), "optimizer": metaopt.Descent("sgd", lr=1e-7)}
    metaopt.run(Ridge(), outer_steps=50, folder=tmp_path / "run", progress=False, **roles)
    assert capsys.readouterr().err.count(SAID) == 1
    metaopt.resume(tmp_path / "run", Ridge(), outer_steps=120, progress=False, **roles)
    assert capsys.readouterr().err.count(SAID) == 0
