"""Misuse from Python is answered by the argument, before a step is taken."""

import math

import numpy as np
import pytest
import torch

import metaopt
from metaopt import SGD, Descent, Engine, Feedback, Problem, Unroll
from metaopt.estimators import Score
from metaopt.optimizers import Grid, Mutation, Random, Search, Uniform
from metaopt.problems.examples import Ridge


def run(problem=None, estimator=None, optimizer=None, steps=3, **settings):
    roles = (problem or Ridge(), estimator or Unroll(inner_steps=2), optimizer or Descent(lr=0.1))
    return metaopt.run(*roles, steps, progress=False, **settings)


class WholeNumbers(Ridge):
    def init_outer(self, generator):
        return {"log_penalty": torch.zeros(20, dtype=torch.long)}


class NoParams(Ridge):
    def init_params(self, outer, generator):
        return {}


class Vector(Ridge):
    def inner_loss(self, outer, inner, batch):
        return inner["weight"]


class OwnReport(Ridge):
    report = "mine"


class OwnRecords(Ridge):
    records = ()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Unroll(2.5), "Unroll needs inner_steps to be an integer, .*; got inner_steps=2.5"),
        (lambda: Unroll(True), "inner_steps to be an integer"),
        (lambda: Descent("adam", lr=math.inf), "Adam needs lr to be a finite number"),
        (lambda: Descent(3), "Descent needs algorithm to be a text or"),
        (lambda: SGD(lr=0.1, schedule=3), "SGD needs schedule to be a"),
        (lambda: Ridge(seed="a"), "Ridge needs seed to be an integer; got seed='a'"),
        (lambda: run(steps=2.5), "run needs outer_steps to be an integer; got 2.5"),
        (lambda: run(steps=True), "run needs outer_steps to be an integer; got True"),
        (lambda: run(seed="a"), "run needs seed to be an integer; got 'a'"),
        (lambda: run(log_every=1.5), "run needs log_every to be an integer; got 1.5"),
        (lambda: run(figures=1), "run needs figures to be true or false; got 1"),
        (lambda: run(limits={"tokens": math.nan}), "run needs limits to be a mapping to a finite"),
        (lambda: run(limits={"tokens": math.inf}), "to a finite number or null; got"),
        (lambda: run(figures=np.bool_(True)), "run needs figures to be true or false"),
        (lambda: run(folder=3), "run needs folder to be a text or a path or null; got 3"),
        (lambda: run(estimator=Unroll), "estimator is the class Unroll, .*: pass Unroll"),
        (lambda: run(estimator=Descent(lr=0.1)), "estimator must have the methods of"),
        (lambda: run(optimizer=Unroll(2)), "optimizer must have the methods of"),
        (lambda: run(Ridge), "problem is the class Ridge"),
        (lambda: run(estimator=Score(2)), "Descent needs feedback with a gradient, and Score"),
        (lambda: run(Ridge(inner_optimizer="sgd")), "Ridge.inner_optimizer must be an inner opt"),
        (lambda: run(WholeNumbers()), "got 'log_penalty' of torch.int64"),
        (lambda: run(NoParams()), "NoParams.init_params must return a dict .*; got an empty dict"),
        (lambda: run(Vector()), r"inner_loss must return a scalar tensor, .*; got shape \(20,\)"),
        (lambda: run(OwnReport()), "OwnReport.report must be a metaopt.Report or None"),
        (lambda: run(OwnRecords()), "OwnRecords.records must be a metaopt.Records or None"),
        (lambda: Engine(Ridge(), Unroll(2), Descent(lr=0.1), outer_steps=1.0), "outer_steps to be"),
    ],
)
def test_the_argument_is_named(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


class Candidates(Problem):
    """F = |outer|, NaN for the candidates whose numbers are listed."""

    def __init__(self, *diverge):
        self.diverge, self.count, self.starts = diverge, 0, []

    def init_outer(self, generator):
        return 1.0

    def init_inner(self, outer, inner, key):
        self.starts.append(inner is None)
        return {}

    def inner_step(self, outer, inner, key):
        return inner

    def evaluate(self, outer, inner, key):
        self.count += 1
        return Feedback(math.nan if self.count in self.diverge else abs(outer))


def test_a_candidate_that_diverges_does_not_end_a_search():
    problem = Candidates(3)
    result = run(problem, Score(1), Random(), steps=6)
    assert result.outer_steps == problem.count == 6
    assert problem.starts == [True, False, False, True, False, False]
    assert math.isfinite(result.outer)


class Numpy(Candidates):
    """What it returns are numbers of numpy."""

    def evaluate(self, outer, inner, key):
        metrics = {"a/float": np.float32(2), "a/flag": True, "a/integer": np.int64(3)}
        return Feedback(np.float32(1), metrics=metrics, cost={"tokens": np.int64(3)})


def test_numbers_of_numpy_stand_for_numbers(tmp_path):
    roles = (Numpy(), Score(np.int32(1)), Random(Uniform(np.float64(-1), 1.0)))
    limits = {"tokens": np.float32(90), "evaluations": None}
    settings = {"folder": tmp_path, "limits": limits, "log_every": np.int64(1), "progress": False}
    metaopt.run(*roles, np.int64(2), np.int64(1), **settings)
    result = metaopt.resume(tmp_path, Numpy(), outer_steps=np.int64(3), progress=False)
    assert result.budget["tokens"] == 9
    assert {k: v for k, v in result.metrics.items() if k[0] == "a"} == {
        "a/float": 2.0, "a/flag": 1.0, "a/integer": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "search", [Random, lambda: Search(Mutation(scale=0.5)), lambda: Grid([1.0, 2.0, 3.0])]
)
def test_a_first_candidate_that_diverges_counts_as_the_worst(search):
    result = run(Candidates(1), Score(1), search(), steps=3)
    assert math.isfinite(result.outer)
    assert [x["outer/loss"] is None for x in result.history] == [True, False, False]
    assert [x["outer/nan_candidates"] for x in result.history] == [1, 1, 1]


def test_a_search_of_which_every_candidate_is_nan_has_no_best():
    with pytest.raises(metaopt.NonFiniteError, match="was NaN for all 3 candidates of Random"):
        run(Candidates(1, 2, 3), Score(1), Random(), steps=3)


def test_nan_candidates_are_counted_across_a_resume(tmp_path):
    settings = {"steps": 2, "folder": tmp_path, "checkpoint_every": 1}
    with pytest.raises(metaopt.NonFiniteError, match="for all 2 candidates"):
        run(Candidates(1, 2), Score(1), Random(), **settings)
    result = metaopt.resume(tmp_path, Candidates(), outer_steps=3, progress=False)
    assert result.metrics["outer/nan_candidates"] == 2
