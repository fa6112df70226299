"""A judge that a run wrote scores new responses, as it was calibrated to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_judges import Paid, by_length, make, run, written

from metaopt.data.solutions import Solutions, solutions
from metaopt.llm import NotUnderstood
from metaopt.metrics.binary import auroc
from metaopt.problems.template_evolution import arithmetic_solutions, load_judge


@pytest.fixture
def data(tmp_path: Path) -> Solutions:
    return solutions(str(written(tmp_path)))


def deliver(problem: Any, folder: Path) -> Any:
    engine = run(problem, 4)
    folder.mkdir()
    problem.report.deliver(engine.optimizer.solution, engine.inner, [], folder)
    return engine


def test_a_loaded_judge_of_criteria_scores_as_the_run_did(data: Solutions, tmp_path: Path) -> None:
    problem = make(data)
    best = deliver(problem, tmp_path / "run").optimizer.solution
    judge = load_judge(tmp_path / "run")
    pairs = [(data.queries[x.query], x.response) for x in problem.test]
    scores = judge.score(pairs)
    assert scores == problem.examine(best)
    record = json.loads((tmp_path / "run" / "judge.json").read_text())
    assert judge.calibration.template == best
    np.testing.assert_array_equal(
        judge.decide(pairs), np.array(scores) >= record["judge"]["threshold"]
    )
    outcomes = [int(x.outcome) for x in problem.test]
    assert auroc(judge.probability(pairs), outcomes) == pytest.approx(
        record["held_out"]["auroc"], abs=0.1
    )
    assert load_judge(str(tmp_path / "run" / "judge.json")).score(pairs[:2]) == scores[:2]


@pytest.mark.slow
def test_a_judge_that_is_a_model_is_given_again(data: Solutions, tmp_path: Path) -> None:
    problem = make(data, judge=Paid(by_length))
    deliver(problem, tmp_path / "run")
    with pytest.raises(ValueError, match="calibrated for the model paid; give it as lm="):
        load_judge(tmp_path / "run")
    pairs = [(data.queries[x.query], x.response) for x in problem.test]
    scores = load_judge(tmp_path / "run", Paid(by_length)).score(pairs)
    assert scores == problem.examine(problem.template)
    other = Paid(by_length)
    other.model = "another"
    with pytest.warns(UserWarning, match="calibrated for 'paid'; the scores of 'another'"):
        load_judge(tmp_path / "run", other)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"judge": {"template": "t"}}'])
def test_a_file_without_a_judge_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "judge.json"
    with pytest.raises(FileNotFoundError, match=r"give the judge\.json in a run's folder"):
        load_judge(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"judge\.json holds no calibrated judge"):
        load_judge(path)


def test_generated_solutions_are_right_or_wrong_as_they_say() -> None:
    data = arithmetic_solutions(60, seed=3)
    assert data == arithmetic_solutions(60, seed=3)
    assert data != arithmetic_solutions(60, seed=4)
    assert len(data.queries) == 60
    assert len(data.rows) == 240
    answers: dict[int, set[str]] = {}
    for x in data.rows:
        if x.outcome:
            answers.setdefault(x.query, set()).add(x.response.splitlines()[-1])
    assert all(len(right) == 1 for right in answers.values())
    for x in data.rows:
        if not x.outcome:
            assert x.response.splitlines()[-1] not in answers.get(x.query, ())
    rates = [np.mean([x.outcome for x in data.rows if x.system == f"system {i}"]) for i in (1, 4)]
    assert rates[0] < rates[1]
    with pytest.raises(ValueError, match="questions >= 2; got 1"):
        arithmetic_solutions(1)


def test_a_judge_that_is_not_understood_is_no_judge(data: Solutions, tmp_path: Path) -> None:
    deliver(make(data, judge=Paid(by_length)), tmp_path / "run")
    judge = load_judge(tmp_path / "run", Paid(lambda text: "It deserves an eight."))
    pairs = [(f"What is {i} + 1?", "A: 1") for i in range(4)]
    assert judge.score(pairs[:2]) == [None, None]
    with pytest.raises(NotUnderstood, match="4 of 4 replies are not understood"):
        judge.score(pairs)
