"""The problem: its value, its control, its search, and runs that are cut short."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_programs import CHECKED, SAMPLED, search, two_types

from metaopt.engine import Engine
from metaopt.engine.random import fold
from metaopt.estimators import Score
from metaopt.optimizers import Search
from metaopt.problems.agent_programs import AgentPrograms, SimulatedWorkers, parse
from metaopt.problems.agent_programs.execution import execute


def test_the_value_is_the_error_and_the_price_of_the_calls() -> None:
    problem = AgentPrograms(two_types(), training=150, call_price=0.01, calls=3)
    program = "route(checked, critique(solve, 1), vote(solve, 2))"
    inner = problem.inner_step(program, problem.init_inner(program, None, 0), 5)
    feedback = problem.evaluate(program, inner, 6)
    result = execute(parse(program, problem.grammar), problem.workers, problem.train, 5)
    checked = problem.workers.features["checked"][problem.train] > 0
    assert (result.calls[~checked] == 2).all()
    assert set(result.calls[checked]) == {2, 3}
    assert feedback.value == pytest.approx(
        1 - result.right.mean() + 0.01 * result.calls.sum() / 150
    )
    assert feedback.cost["lm_calls"] == result.calls.sum()
    rows = {row["feature"]: row for row in feedback.artifacts["evidence"]}
    assert rows["checked"]["questions"] == checked.sum()
    assert rows["checked"]["wrong"] == (checked & ~result.right).sum()


def test_calls_are_charged_in_training_and_at_the_end() -> None:
    problem = AgentPrograms(two_types(questions=300), training=100, calls=3, held_out=150)
    engine = search(problem, 1)
    assert engine.inner["history"][0]["program"] == "vote(solve, 3)"
    assert engine.ledger.spent["lm_calls"] == 3 * 100 + 2 * 3 * 150
    engine = search(AgentPrograms(two_types(questions=300), training=100, calls=3), 4)
    ran = sum(entry["calls"] * 100 for entry in engine.inner["history"])
    final = engine.inner["final"]
    tested = sum(int(final[side]["calls"].sum()) for side in ("solution", "control"))
    rewriter = engine.problem.client.spent("rewriter")["lm_calls"]
    assert engine.ledger.spent["lm_calls"] == pytest.approx(ran + tested + rewriter)
    assert engine.metrics()["eval/training_calls"] == pytest.approx(ran)


def test_the_control_is_neither_better_nor_worse_than_itself() -> None:
    problem = AgentPrograms(two_types(), training=100)
    metrics = search(problem, 1).metrics()
    assert metrics["eval/gain"] == metrics["eval/gain_low"] == metrics["eval/gain_high"] == 0
    assert metrics["eval/expected_gain"] == 0
    assert metrics["eval/accuracy"] == metrics["eval/control_accuracy"]


def test_the_gain_is_paired_by_question() -> None:
    problem = AgentPrograms(two_types(questions=500), training=100, first="oracle")
    engine = search(problem, 1)
    right, control = (engine.inner["final"][s]["right"].numpy() for s in ("solution", "control"))
    difference = right.astype(int) - control.astype(int)
    metrics = engine.metrics()
    assert metrics["eval/gain"] == pytest.approx(difference.mean())
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert metrics["eval/gain_low"] == pytest.approx(difference.mean() - half, abs=0.2 * half)
    assert metrics["eval/gain_high"] == pytest.approx(difference.mean() + half, abs=0.2 * half)


def test_a_search_finds_what_types_need_and_only_where_they_differ() -> None:
    gains = {}
    for name, other in (("differ", CHECKED), ("same", SAMPLED)):
        types = {"sampled": SAMPLED, "checked": other}
        each = []
        for seed in range(3):
            workers = SimulatedWorkers(types, 0.3, questions=400, seed=seed)
            problem = AgentPrograms(workers, training=200, seed=seed)
            each.append(search(problem, 30, seed).metrics()["eval/expected_gain"])
        gains[name] = each
    assert min(gains["differ"]) > 0.05
    assert -0.1 < min(gains["same"]) <= max(gains["same"]) <= 1e-12  # of one type vote is best


def test_fixed_blocks_take_turns() -> None:
    problem = AgentPrograms(two_types(), training=50, calls=5)
    optimizer = Search(problem.propose_fixed, accept="archive", archive_size=None)
    engine = Engine(problem, Score(1), optimizer, outer_steps=13)
    for _ in engine:
        pass
    runs = {trial.outer: trial.evaluations for trial in optimizer.trials}
    assert sorted(runs) == [
        "critique(solve, 2)", "debate(solve, solve, 1)", "refine(solve, 4)",
        "select(judge, solve, 4)", "solve", "vote(solve, 5)",
    ]  # fmt: skip
    assert sorted(runs.values()) == [2, 2, 2, 2, 2, 3]


def test_a_random_search_draws_what_is_legal() -> None:
    problem = AgentPrograms(two_types(), training=50, calls=4)
    tried = {problem.propose_random([], fold(0, i)) for i in range(30)}
    assert len(tried) > 15
    assert all(parse(text, problem.grammar).calls <= 4 for text in tried)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": 400}, "training=400 leaves none of 400 questions held out; take at most 399"),
        ({"calls": 0}, "1 <= calls <= 1000; got calls=0"),
        ({"depth": 1}, r"control='vote\(solve, 5\)': Program, column 6: more than 1 blocks deep"),
        ({"call_price": -1.0}, "call_price >= 0; got call_price=-1.0"),
        ({"first": "vote(solve, 6)"}, r"first='vote\(solve, 6\)': Program: 6 calls of a question"),
        ({"control": "guess"}, r"control='guess': Program, column 1: 'guess' is no block"),
        ({"roles": {"coder": None}}, "roles names coder; the only role is rewriter"),
        ({"skill": 2.0}, "0 <= skill <= 1; got skill=2.0"),
        ({"attempts": 0}, "attempts >= 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentPrograms(two_types(), **arguments)


def test_a_resumed_search_is_the_same_to_the_bit() -> None:
    def begin() -> Engine:
        problem = AgentPrograms(two_types(), training=60)
        optimizer = Search(problem.propose, problem.screen, accept="archive", archive_size=None)
        return Engine(problem, Score(1), optimizer, outer_steps=8)

    whole, first, second = begin(), begin(), begin()
    for _ in whole:
        pass
    for step, _ in first:
        if step == 3:
            break
    second.load_state_dict(first.state_dict())
    for _ in second:
        pass
    for engine in (whole, second):
        engine.finish()
    assert second.inner["history"] == whole.inner["history"]
    assert second.metrics() == whole.metrics()
    assert second.ledger.spent == whole.ledger.spent


SMALL = (
    "problem=agent_programs", "problem.workers.questions=240", "problem.training=80",
    "outer_steps=6", "checkpoint_every=1",
)  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_result(
    metaopt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metaopt(*SMALL, "hydra.run.dir=whole").code == 0
    step, count = AgentPrograms.inner_step, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        count.append(1)
        if len(count) == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(AgentPrograms, "inner_step", interrupted)
    assert metaopt(*SMALL, "hydra.run.dir=halved").code != 0
    monkeypatch.setattr(AgentPrograms, "inner_step", step)
    assert metaopt("resume=halved").code == 0
    whole, halved = (json.loads(Path(f, "result.json").read_text()) for f in ("whole", "halved"))
    assert whole["metrics"] == halved["metrics"]
    assert whole["budget"] == halved["budget"]


def test_a_run_hands_over_its_program(tmp_path: Path) -> None:
    problem = AgentPrograms(two_types(), training=60, calls=3)
    engine = search(problem, 5)
    solution = engine.optimizer.solution
    said = problem.report.deliver(solution, engine.inner, [], tmp_path)
    assert (tmp_path / "program.txt").read_text() == solution + "\n"
    tried = json.loads((tmp_path / "programs.json").read_text())
    assert tried[0]["program"] == "vote(solve, 3)"
    assert len(tried) == 5
    gain = 100 * engine.metrics()["eval/gain"]
    assert f"gain over the control: {gain:+.1f} points (95 % by question: " in said
    for name in ("report.md", "report.html", "figures/accuracy_against_calls.png"):
        assert (tmp_path / name).stat().st_size > 500
