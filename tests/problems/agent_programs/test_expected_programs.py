"""Expected accuracies: against the binomial, against execution; the oracle against all pairs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom
from small_programs import CHECKED, EFFECTS, OTHER, SAMPLED, grammar_of, two_types

from metaopt.problems.agent_programs import Program, SimulatedWorkers, parse
from metaopt.problems.agent_programs.drawing import random_program
from metaopt.problems.agent_programs.execution import execute
from metaopt.problems.agent_programs.expected import expected
from metaopt.problems.agent_programs.oracle import enumerated, oracle
from metaopt.problems.agent_programs.workers import everything


def vote(n: int) -> Program:
    return Program("vote", (Program("solve"),), n)


@pytest.mark.parametrize("c", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [2, 5, 8, 31])
def test_votes_on_two_answers_are_binomial(c: float, n: int) -> None:
    p = 0.62
    workers = SimulatedWorkers({"one": {"accuracy": p}}, c, wrong_answers=1)
    majority = binom.sf(n // 2, n, p) + (binom.pmf(n // 2, n, p) / 2 if n % 2 == 0 else 0)
    assert expected(vote(n), workers).accuracy == pytest.approx(c * p + (1 - c) * majority)


def test_voting_saturates_where_errors_are_shared() -> None:
    accuracies = [
        expected(vote(65), SimulatedWorkers({"one": {"accuracy": 0.62}}, c)).accuracy
        for c in (0.0, 0.25, 0.5, 1.0)
    ]
    limits = [c * 0.62 + 1 - c for c in (0.0, 0.25, 0.5, 1.0)]
    assert accuracies == pytest.approx(limits, abs=1e-4)


@pytest.mark.parametrize("votes", [3, 4])
def test_votes_on_several_answers_by_all_sequences(votes: int) -> None:
    p, wrong = 0.45, 3
    each = [p, *[(1 - p) / wrong] * wrong]
    accuracy = 0.0
    for answers in product(range(4), repeat=votes):
        counts = [answers.count(a) for a in answers]
        accuracy += (answers[counts.index(max(counts))] == 0) * np.prod([each[a] for a in answers])
    workers = SimulatedWorkers({"one": {"accuracy": p}}, wrong_answers=wrong)
    assert expected(vote(votes), workers).accuracy == pytest.approx(accuracy)
    several = Program("vote", (Program("solve"),) * votes)
    assert expected(several, workers).accuracy == pytest.approx(accuracy)


def test_two_calls_of_a_question_are_right_together_as_often_as_stated() -> None:
    p, c, count = 0.6, 0.35, 100_000
    workers = SimulatedWorkers({"one": {"accuracy": p}}, c, questions=count)
    first, second = (workers.solve("", everything(count), key) == 0 for key in (1, 2))
    assert first.mean() == pytest.approx(p, abs=0.007)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(c, abs=0.015)


def test_a_weak_worker_shares_the_errors_of_a_strong_one() -> None:
    workers = SimulatedWorkers({"one": EFFECTS}, 1.0, questions=20_000)
    strong, weak = (
        workers.solve(name, everything(workers.size), 1) == 0 for name in ("strong", "weak")
    )
    assert not (weak & ~strong).any()
    assert weak.mean() == pytest.approx(0.4, abs=0.015)


BLOCKS = [
    "refine(solve(strong), 2)",
    "critique(vote(solve(strong), solve(weak)), 2)",
    "debate(solve(strong), refine(solve(weak), 1), 2)",
    "select(judge, solve(weak), 3)",
    "select(judge, solve(strong), solve(weak), refine(solve(weak), 1))",
    "vote(route(first, solve(weak), solve(strong)), solve(strong), solve(weak))",
    "route(second, vote(critique(solve(strong), 1), 2), select(judge, solve(strong), 2))",
]


@pytest.mark.parametrize("text", BLOCKS)
def test_the_expectation_is_what_execution_comes_to(text: str) -> None:
    count = 40_000
    workers = SimulatedWorkers({"first": EFFECTS, "second": OTHER}, 0.4, 3, 0.2, count, seed=2)
    program = parse(text, grammar_of(workers, calls=12))
    result, exact = execute(program, workers, everything(count), 7), expected(program, workers)
    error = np.sqrt(exact.accuracy * (1 - exact.accuracy) / count)
    assert abs(result.right.mean() - exact.accuracy) < 4.5 * error
    assert abs(result.calls.mean() - exact.calls) <= 4.5 * result.calls.std() / np.sqrt(count)
    assert result.calls.max() == program.calls


def test_the_oracle_is_the_best_of_all_pairs_of_enumerated_blocks() -> None:
    workers = two_types(label_error=0.1)
    grammar = grammar_of(workers, calls=3)
    best = expected(oracle(workers, grammar), workers).accuracy
    blocks = sorted({*enumerated(grammar)}, key=str)
    pairs = [
        expected(Program("route", (first, second), 0, "sampled"), workers).accuracy
        for first, second in product(blocks, repeat=2)
    ]
    assert len(blocks) >= 8
    assert best == pytest.approx(max(pairs), abs=1e-12)
    draw = np.random.default_rng(0)
    for _ in range(60):
        assert expected(random_program(grammar, draw), workers).accuracy <= best + 1e-12


def test_the_oracle_of_one_type_is_one_block() -> None:
    for effects, best in ((SAMPLED, "vote(solve, 5)"), (CHECKED, "refine(solve, 4)")):
        workers = SimulatedWorkers({"a": effects, "b": effects}, 0.3)
        assert str(oracle(workers, grammar_of(workers, calls=5))) == best
    workers = two_types()
    assert str(oracle(workers, grammar_of(workers, calls=5))) in (
        "route(sampled, vote(solve, 5), refine(solve, 4))",
        "route(checked, refine(solve, 4), vote(solve, 5))",
    )


def test_a_call_has_a_price() -> None:
    workers = two_types()
    assert str(oracle(workers, grammar_of(workers, calls=5), price=1.0)) == "solve"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correlation": 1.5}, "0 <= correlation <= 1; got correlation=1.5"),
        ({"types": {"a": {"fixes": 0.1}}}, "types.a needs accuracy and takes accuracy, fixes, br"),
        ({"types": {"a": {"accuracy": 0.5, "fix": 0.1}}}, "got accuracy, fix"),
        ({"types": {"a": {"accuracy": 1.2}}}, r"types.a.accuracy.solver must be a probability"),
        ({"types": {}}, "types, at least one"),
        ({"types": {"a": EFFECTS, "b": SAMPLED}}, "the same workers; got a: strong, weak; b: sol"),
    ],
)
def test_wrong_worlds_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedWorkers(**{"types": {"a": SAMPLED}, **arguments})
