"""Report and Records: explicit objects of a problem, whose own attributes may have any name."""

import pytest
import torch

from metaopt import Engine, Feedback, Problem, Records, Report
from metaopt.estimators import Score, Unroll
from metaopt.optimizers import Constant, Descent, Schedule
from metaopt.problems.examples import Ridge
from metaopt.runs.run import Run


class Distance(Problem):
    """F = |outer - count|; attributes of its own have the names of a report's and a run's parts."""

    open, draw, step, spent, close, authorisation = "open", 3, 0.5, [], None, "mine"

    def figures(self):
        raise AssertionError("the problem's own method is not the report's")

    snapshot = deliver = figures

    def init_outer(self, generator):
        return 1.0

    def init_inner(self, outer, inner, key):
        return inner or {"count": 0}

    def inner_step(self, outer, inner, key):
        return {"count": inner["count"] + self.draw}

    def evaluate(self, outer, inner, key):
        return Feedback(abs(outer - inner["count"]), cost={"evaluations": 1})


class Counts(Report):
    def __init__(self):
        self.drawn = []

    def snapshot(self, outer, inner):
        return {"count": torch.tensor(inner["count"])}

    def figures(self, snapshots, folder):
        self.drawn = [(step, int(s["count"])) for step, s in snapshots]
        return []

    def deliver(self, outer, inner, snapshots, folder):
        return f"{len(snapshots)} snapshots, count {inner['count']}"


class Answers(Records):
    def __init__(self):
        self.authorisation, self.calls = {"target": "c0ffee"}, []

    def open(self, folder):
        self.calls.append(("open", folder))

    def spent(self):
        return {"lm_calls": 7}

    def close(self):
        self.calls.append("close")


def run(problem, folder, steps=4):
    engine = Engine(problem, Score(1), Schedule(Constant(1.0)), outer_steps=steps)
    folder.mkdir()
    made = Run(engine, folder, {"name": "distance"}, eval_every=2)
    return made, made()


def test_own_attributes_may_have_any_name(tmp_path):
    made, result = run(Distance(), tmp_path / "run")
    assert result["outer_steps"] == 4
    assert result["budget"]["evaluations"] == 4
    assert "authorisation" not in result
    assert not (tmp_path / "run" / "snapshots").exists()
    assert made.delivered == ""


def test_report_is_drawn_from_its_snapshots_and_delivers(tmp_path):
    problem = Distance()
    problem.report = Counts()
    made, _ = run(problem, tmp_path / "run")
    assert problem.report.drawn == [(2, 6), (4, 12)]
    assert made.delivered == "2 snapshots, count 12"


def test_records_are_opened_charged_and_closed(tmp_path):
    problem = Distance()
    problem.records = Answers()
    _, result = run(problem, tmp_path / "run")
    assert problem.records.calls == [("open", tmp_path / "run"), "close"]
    assert result["budget"]["lm_calls"] == 7
    assert result["authorisation"] == {"target": "c0ffee"}


def test_records_are_closed_when_the_run_fails(tmp_path):
    problem = Distance()
    problem.records = Answers()
    problem.evaluate = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(problem, tmp_path / "run")
    assert problem.records.calls[-1] == "close"


def test_report_that_draws_snapshots_it_does_not_take_is_refused():
    class Blind(Report):
        def figures(self, snapshots, folder):
            return []

    with pytest.raises(TypeError, match="Blind takes none; define snapshot"):
        Blind()


def test_what_is_no_problem_is_refused():
    with pytest.raises(TypeError, match=r"object is no problem; .*metaopt.GradientProblem"):
        Engine(object(), Score(1), Schedule(Constant(1.0)), outer_steps=1)


class Own(Ridge):
    """A gradient problem whose own attributes have names of the loop's and the report's parts."""

    open, step, spent, batch, start, figures = "open", 0.5, [], None, 7, "mine"

    def draw(self):
        raise AssertionError("the problem's own method is not the loop's")

    run = tensors = inner_value = draw


def test_a_gradient_problem_may_use_any_name_too():
    descents = Descent("adam", lr=0.1), Descent("adam", lr=0.1)
    for problem, descent in zip((Own(), Ridge()), descents, strict=True):
        assert len(list(Engine(problem, Unroll(2), descent, outer_steps=3))) == 3
    own, plain = (descent.solution for descent in descents)
    assert torch.equal(own["log_penalty"], plain["log_penalty"])
