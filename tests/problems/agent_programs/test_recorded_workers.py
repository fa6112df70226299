"""Recorded systems: their answers, their calls, and GSM8K's four."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_programs import grammar_of, search

from metaopt.data.final_answers import final_answer
from metaopt.data.solutions import Solution, Solutions, solutions
from metaopt.problems.agent_programs import AgentPrograms, RecordedWorkers, parse
from metaopt.problems.agent_programs.execution import execute
from metaopt.problems.agent_programs.workers import everything

ANSWERS = {  # by question: (system, answer), the right answer is 1
    "How many of 2 are left?": (("a", "A: 1"), ("b", "x\nA: 2"), ("c", "A: 2.0")),
    "What is half of 4?": (("a", "#### 3"), ("b", "long text\nA: 1"), ("c", "A: 1")),
    "Each of 7 has 10 percent": (("a", "A: 5"), ("b", "A: 6"), ("c", "so it is 1")),
}


def small() -> Solutions:
    rows = [
        Solution(query, text, final_answer(text) == "1", system)
        for query, answers in enumerate(ANSWERS.values())
        for system, text in answers
    ]
    return Solutions(tuple(ANSWERS), tuple(rows), source="small.jsonl")


@pytest.mark.parametrize(
    ("text", "right", "calls"),
    [
        ("solve(a)", [1, 0, 0], 1),
        ("vote(solve(a), solve(b), solve(c))", [0, 1, 0], 3),
        ("vote(solve(c), solve(b), solve(a))", [0, 1, 1], 3),  # of a tie the first
        ("vote(solve(a), solve(a), solve(b), solve(c))", [1, 0, 0], 3),
        ("select(longest, solve(a), solve(b))", [0, 1, 0], 2),
        ("select(shortest, solve(b), solve(c))", [0, 1, 0], 2),
        ("route(left > 0, solve(a), solve(c))", [1, 1, 1], 1),
    ],
)
def test_programs_over_recorded_answers(text: str, right: list[int], calls: int) -> None:
    workers = RecordedWorkers(small())
    result = execute(parse(text, grammar_of(workers)), workers, everything(3), 0)
    assert result.right.astype(int).tolist() == right
    assert result.calls.tolist() == [calls] * 3


def test_the_control_is_the_system_that_is_best_in_training() -> None:
    problem = AgentPrograms(RecordedWorkers(small()), training=2, seed=3)
    by_system = {s: [int(dict(a)[s].endswith("1")) for a in ANSWERS.values()] for s in "abc"}
    trained = {s: sum(v[q] for q in problem.train) for s, v in by_system.items()}
    best = max(trained, key=lambda s: trained[s])
    assert str(problem.control) == f"solve({best})" == problem.first
    assert problem.resplit == pytest.approx(1 / 2)


def test_a_vote_of_all_has_the_best_in_training_first() -> None:
    problem = AgentPrograms(RecordedWorkers(small()), training=2, seed=3, first="all")
    program = parse(problem.first, problem.grammar)
    assert program.block == "vote"
    assert program.parts[0] == problem.control
    assert {part.name for part in program.parts} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Solution(0, "1", True, "a"), Solution(0, "1", True, "b")], None),
        ([Solution(0, "1", True, "a")], "at least two systems"),
        ([Solution(0, "1", True, "a"), Solution(0, "1", True, "b c")], "'b c'. Name them in the"),
        (
            [Solution(0, "1", True, s) for s in "aab"],
            "question 1 has 2 of a, and 1 questions are incomplete",
        ),
    ],
)
def test_systems_have_one_solution_each(rows: list[Solution], message: str | None) -> None:
    data = Solutions(("q",), tuple(rows), source="small.jsonl")
    if message is None:
        assert RecordedWorkers(data).names == ("a", "b")
        return
    with pytest.raises(ValueError, match=message):
        RecordedWorkers(data)


def test_an_oracle_of_recorded_systems_is_refused() -> None:
    with pytest.raises(ValueError, match="first=oracle needs simulated workers"):
        AgentPrograms(RecordedWorkers(small()), training=2, first="oracle")


@pytest.fixture(scope="module")
def gsm8k() -> Any:
    if "METAOPT_DATA" not in os.environ:
        pytest.skip("METAOPT_DATA is not set")
    return solutions()


@pytest.mark.data
def test_gsm8k_by_a_count_of_its_rows(gsm8k: Solutions) -> None:
    workers = RecordedWorkers(gsm8k)
    grammar = grammar_of(workers)
    systems = ("175b_verification", "6b_finetuning", "6b_verification")

    def share(text: str) -> float:
        return float(execute(parse(text, grammar), workers, everything(1319), 0).right.mean())

    assert share("solve(175b_verification)") == pytest.approx(742 / 1319)  # 56.3 %
    table: dict[int, dict[str, Solution]] = {}
    for row in gsm8k.rows:
        table.setdefault(row.query, {})[row.system] = row
    right = 0
    for rows in table.values():
        votes = Counter(final_answer(rows[s].response) for s in systems)
        most = [s for s in systems if votes[final_answer(rows[s].response)] == max(votes.values())]
        right += rows[most[0]].outcome
    programs = ", ".join(f"solve({s})" for s in systems)
    assert share(f"vote({programs})") == pytest.approx(right / 1319)


@pytest.mark.data
def test_a_search_over_gsm8k_never_takes_more_calls_than_it_may(gsm8k: Solutions) -> None:
    problem = AgentPrograms(RecordedWorkers(gsm8k), calls=2, training=200)
    engine = search(problem, 12)
    metrics = problem.metrics(engine.optimizer.solution, engine.inner)
    assert metrics["calls"] <= 2
    assert metrics["control_calls"] == 1
    assert engine.optimizer.trials[0].value <= 1 - np.mean(
        [
            r.outcome
            for r in gsm8k.rows
            if r.system == "175b_verification" and r.query in problem.train
        ]
    )


@pytest.mark.slow
def test_the_command_reads_a_file_of_ones_own(metaopt: Any, tmp_path: Path) -> None:
    rows = [
        {"query": q, "system": s, "response": text, "outcome": final_answer(text) == "1"}
        for q, answers in ANSWERS.items()
        for s, text in answers
    ]
    path = tmp_path / "systems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data@problem.workers=agent_programs/recorded", f"problem.workers.data.source={path}")
    few = ("problem.training=2", "problem.calls=2", "outer_steps=2")
    done = metaopt("problem=agent_programs", *data, *few)
    assert done.code == 0, done.err
    assert "held out, 1 questions" in done.out
    done = metaopt("problem=agent_programs", *data, *few, "problem.first='refine(solve(a), 1)'")
    assert done.code == 1
    assert "refine needs a fresh call of a model, and the workers are recorded" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("criterion", ["longest", "shortest"])
def test_a_solution_without_an_answer_is_selected_last(criterion: str) -> None:
    rows = [
        Solution(query, text, text.endswith("1"), system)
        for query, none in enumerate(["?", "no number at all, in many words"])
        for system, text in (("a", none), ("b", "so A: 1"))
    ]
    workers = RecordedWorkers(Solutions(("one", "other"), tuple(rows), source="small.jsonl"))
    program = parse(f"select({criterion}, solve(a), solve(b))", grammar_of(workers))
    assert execute(program, workers, everything(2), 0).right.tolist() == [True, True]
