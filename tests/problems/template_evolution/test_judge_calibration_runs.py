"""Runs of judge calibration: their budgets, their reports, and runs that are cut short."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_judges import Paid, by_length, make, run, written

from metaopt.data.solutions import Solutions, solutions
from metaopt.engine import Engine
from metaopt.estimators import Score
from metaopt.llm import Client
from metaopt.llm.rubric import Rubric
from metaopt.optimizers import Search
from metaopt.problems.template_evolution import JudgeCalibration, load_judge


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
def data(path: Path) -> Solutions:
    return solutions(str(path))


def test_a_resumed_run_pays_for_no_call_twice(data: Solutions, tmp_path: Path) -> None:
    def begin(lm: Paid) -> Engine:
        problem = make(data, judge=lm)
        problem.records.open(tmp_path / "run")
        optimizer = Search(problem.propose, problem.screen)
        return Engine(problem, Score(1), optimizer, outer_steps=4)

    once, first, second = Paid(by_length), Paid(by_length), Paid(by_length)
    whole = run(make(data, judge=once), 4)
    whole.problem.score(Rubric({"steps": 1.0}).render(), whole.problem.labelled[:5])
    engine = begin(first)
    for step, _ in engine:
        if step == 2:
            break
    state = engine.state_dict()
    engine.problem.score(Rubric({"steps": 1.0}).render(), engine.problem.labelled[:5])
    engine.problem.records.close()
    resumed = begin(second)
    resumed.load_state_dict(state)
    for _ in resumed:
        pass
    resumed.problem.score(Rubric({"steps": 1.0}).render(), resumed.problem.labelled[:5])
    resumed.problem.records.close()
    assert not set(first.asked) & set(second.asked)
    assert sorted(first.asked + second.asked) == sorted(once.asked)
    assert resumed.inner["tried"] == whole.inner["tried"]


def test_a_budget_too_small_for_a_step_and_the_report_is_refused(data: Solutions) -> None:
    needed = 60 + 2 * 90
    small = partial(Client, budget={"judge": {"lm_calls": needed - 1}})
    with pytest.raises(ValueError, match=rf"budget\.judge\.lm_calls=239 .* least {needed} calls"):
        make(data, judge=Paid(by_length), client=small)
    make(data, judge=Paid(by_length), client=partial(Client, limits={"lm_calls": needed + 1}))
    with pytest.raises(ValueError, match=r"budget\.judge\.lm_calls=59 "):
        make(data, client=partial(Client, budget={"judge": {"lm_calls": 59}}))


def test_a_search_stops_while_the_budget_lasts_for_the_report(data: Solutions) -> None:
    lm = Paid(by_length)
    problem = make(data, judge=lm, client=partial(Client, budget={"judge": {"lm_calls": 340}}))
    engine = run(problem, 10)
    each = len({(r.query, r.response) for r in problem.labelled})
    assert engine.outer_step == 2  # 340 - 2 * 60 is less than another 60 and 180 for the report
    assert "another template and the report" in str(engine.stopped)
    assert len(lm.asked) == engine.ledger.spent["lm_calls"] - 1 == 2 * each
    assert np.isfinite([trial["loss"] for trial in engine.inner["tried"]]).all()
    for template in (problem.template, engine.optimizer.solution):
        assert None not in problem.examine(template)


def test_a_spent_budget_keeps_what_was_paid_for(data: Solutions) -> None:
    lm = Paid(by_length)  # 15 tokens an answer
    free = partial(Client, budget={"judge": {"tokens": 2000}})
    problem = make(data, judge=lm, client=free, max_tokens=5)
    engine = run(problem, 10)
    losses = [trial["loss"] for trial in engine.inner["tried"]]
    assert "budget of 2000 tokens for judge is spent" in str(engine.stopped)
    assert 1 < len(losses) < 10
    assert np.isfinite(losses[:-1]).all()
    assert losses[-1] == float("inf")
    scored = [s for s in engine.inner["scores"] if s is not None]
    assert 0 < len(scored) < len(problem.labelled)
    assert engine.optimizer.solution in [t["template"] for t in engine.inner["tried"][:-1]]


def test_a_run_delivers_a_calibrated_judge_and_shows_no_response(
    data: Solutions, tmp_path: Path
) -> None:
    problem = make(data)
    engine = run(problem, 6)
    best = engine.optimizer.solution
    said = problem.report.deliver(best, engine.inner, [], tmp_path / "run")
    metrics = problem.metrics(best, engine.inner)
    record = json.loads((tmp_path / "run" / "judge.json").read_text())
    assert record["judge"]["template"] == best
    assert record["first"]["judge"]["template"] == problem.template
    assert record["held_out"]["n"] == 90
    assert record["held_out"]["auroc"] == pytest.approx(metrics["auroc"])
    assert record["held_out"]["kappa"] == pytest.approx(metrics["kappa"])
    assert record["held_out"]["brier"] == pytest.approx(metrics["calibrated_brier"])
    rows = {(r.query, r.response) for r in problem.labelled}  # equal ones are asked about once
    calls = f"calls: {6 * len(rows) + 5} (judge {6 * len(rows)}, template 5)"
    for part in (calls, "first template:", f"-> {metrics['auroc']:.3f}", "judge.json"):
        assert part in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "figures" / "evolution.png").is_file()
    assert_no_response_in(tmp_path / "run")


@pytest.mark.slow
def test_a_run_says_what_failed_and_on_how_many_responses_its_figures_are(
    data: Solutions, tmp_path: Path
) -> None:
    lm = Paid(by_length, fails=lambda text: "7: add" in text)
    problem = make(data, judge=lm, client=partial(Client, limits={"lm_calls": 9999}))
    engine = run(problem, 2)
    said = problem.report.deliver(engine.optimizer.solution, engine.inner, [], tmp_path)
    failed = problem.client.failed["rejected"]
    assert failed > 0
    assert f"requests: {len(lm.asked):,}, of which {failed} failed (rejected {failed})" in said
    figures = [line for line in said.splitlines() if line.startswith("    auroc")]
    assert len(figures) == 1
    assert "% of responses with a score" in figures[0]


def assert_no_response_in(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 4
    for file in files:
        assert b"and so it goes on" not in file.read_bytes(), file


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_result(
    metaopt: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (
        "problem=template_evolution/judge_calibration",
        "data@problem.data=template_evolution/solutions", f"problem.data.source={path}",
        "problem.labelled=60", "outer_steps=6", "checkpoint_every=1", "figures=false",
    )  # fmt: skip
    assert metaopt(*common, "hydra.run.dir=whole").code == 0
    step, count = JudgeCalibration.inner_step, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        count.append(1)
        if len(count) == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(JudgeCalibration, "inner_step", interrupted)
    assert metaopt(*common, "hydra.run.dir=halved").code != 0
    monkeypatch.setattr(JudgeCalibration, "inner_step", step)
    assert metaopt("resume=halved").code == 0
    whole, halved = (json.loads(Path(f, "result.json").read_text()) for f in ("whole", "halved"))
    assert whole["metrics"] == halved["metrics"]
    assert whole["budget"] == halved["budget"]
    assert_no_response_in(Path("halved"))


@pytest.mark.slow
def test_a_small_file_of_ones_own_runs_as_it_is(metaopt: Any, path: Path) -> None:
    data = ("data@problem.data=template_evolution/solutions", f"problem.data.source={path}")
    done = metaopt("problem=template_evolution/judge_calibration", *data, "debug=tiny")
    assert done.code == 0, done.err
    (judge,) = Path("runs").rglob("judge.json")
    record = json.loads(judge.read_text())
    assert record["provenance"]["searched and fitted on"] == "90 responses to 30 queries"
    (score,) = load_judge(judge).score([("0: add 2 and 3", "2+3=<<2+3=5>>5\nA: 5")])
    assert score is not None
    assert 1 <= score <= 10


def test_missing_data_says_where_to_put_it(
    metaopt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "nowhere"))
    problem, data = "problem=template_evolution/judge_calibration", "data@problem.data"
    done = metaopt(problem, f"{data}=template_evolution/gsm8k")
    assert done.code == 1
    assert "set METAOPT_DATA" in done.err
    assert "Traceback" not in done.err
