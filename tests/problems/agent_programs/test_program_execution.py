"""Execution of programs on scripted answers, and its calls, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from small_programs import Scripted

from metaopt.problems.agent_programs import Grammar, parse
from metaopt.problems.agent_programs.execution import Execution, execute, plurality
from metaopt.problems.agent_programs.workers import NO_ANSWER

GRAMMAR = Grammar(("a",), {"long": (0,)}, ("judge", "largest"), calls=99)


def run(text: str, workers: Scripted) -> Execution:
    return execute(parse(text, GRAMMAR), workers, np.arange(workers.size), 0)


def test_a_vote_takes_the_most_frequent_answer_and_of_equals_the_first() -> None:
    # columns are questions: a majority, a tie, a later majority, all different
    workers = Scripted({"solve": [[1, 2, 3, 3], [1, 0, 0, 2], [0, 0, 0, 1], [4, 2, 3, 0]]}, 4)
    result = run("vote(solve, 4)", workers)
    assert result.solutions.tolist() == [1, 2, 3, 3]
    assert result.right.tolist() == [False] * 4
    assert result.calls.tolist() == [4] * 4


def test_a_voter_without_an_answer_counts_for_nothing() -> None:
    none = NO_ANSWER
    votes = [np.array(row) for row in ([none, none, 5], [none, none, none], [2, none, none])]
    assert plurality(votes).tolist() == [2, 0, 0]


def test_a_refinement_takes_a_call_each_round() -> None:
    workers = Scripted({"solve": [[1, 2]], "refine": [[3, 0], [0, 4]]}, 2)
    result = run("refine(solve, 2)", workers)
    assert result.right.tolist() == [True, False]
    assert result.calls.tolist() == [3, 3]


def test_a_critique_revises_what_is_flagged_alone() -> None:
    scripts = {
        "solve": [[1, 0, 2]], "flags": [[1, 0, 0], [0, 0, 1]], "revise": [[0, 9, 9], [9, 9, 3]],
    }  # fmt: skip
    workers = Scripted(scripts, 3)
    result = run("critique(solve, 2)", workers)
    assert result.solutions.tolist() == [0, 0, 3]
    assert result.calls.tolist() == [4, 3, 4]
    assert workers.log == [
        ("solve", 0, 1, 2), ("flags", 0, 1, 2), ("revise", 0), ("flags", 0, 1, 2), ("revise", 2),
    ]  # fmt: skip


def test_a_debate_asks_both_sides_as_long_as_they_differ() -> None:
    scripts = {
        "solve": [[0, 1, 1, 5], [0, 0, 2, 6]],
        "argue": [[9, 0, 1, 5], [9, 0, 2, 6], [9, 9, 3, 5], [9, 9, 3, 6]],
    }
    workers = Scripted(scripts, 4)
    result = run("debate(solve, solve, 2)", workers)
    assert result.solutions.tolist() == [0, 0, 3, 5]  # the last never agree: the first one's
    assert result.calls.tolist() == [2, 4, 6, 6]
    sides = [entry[1:] for entry in workers.log if entry[0] == "sides"]
    # both sides of a round read what the other held before it
    assert sides == [(1, 1, 5, 0, 2, 6), (0, 2, 6, 1, 1, 5), (1, 5, 2, 6), (2, 6, 1, 5)]


def test_a_judge_is_asked_where_the_candidates_differ() -> None:
    workers = Scripted({"solve": [[1, 2, 1], [1, 0, 3], [1, 2, 0]], "choose": [[9, 1, 2]]}, 3)
    result = run("select(judge, solve, 3)", workers)
    assert result.solutions.tolist() == [1, 0, 0]
    assert result.calls.tolist() == [3, 4, 4]
    assert workers.log[-1] == ("choose", 1, 2)


def test_a_selection_by_rule_asks_nobody() -> None:
    workers = Scripted({"solve": [[1, 2], [3, 2]]}, 2)
    result = run("select(largest, solve, 2)", workers)
    assert result.solutions.tolist() == [3, 2]
    assert result.calls.tolist() == [2, 2]


def test_a_route_sends_each_question_one_way() -> None:
    scripts = {"solve": [[1, 1, 1], [2, 2, 2], [0, 0, 0], [0, 0, 0]]}
    workers = Scripted(scripts, 3, long=[5, 0, 1])
    result = run("route(long > 1, solve, vote(solve, 3))", workers)
    assert workers.log == [("solve", 0), ("solve", 1, 2), ("solve", 1, 2), ("solve", 1, 2)]
    assert result.solutions.tolist() == [1, 0, 0]
    assert result.calls.tolist() == [1, 3, 3]


def test_a_program_runs_on_some_questions_and_on_none() -> None:
    workers = Scripted({"solve": [[7, 0, 8], [7, 0, 8]]}, 3, long=[0, 0, 0])
    some = np.array([2, 1])
    program = parse("route(long, solve, vote(solve, solve))", GRAMMAR)
    assert execute(program, workers, some, 0).right.tolist() == [False, True]
    nothing = execute(program, workers, some[:0], 0)
    assert [len(part) for part in nothing] == [0, 0, 0]


@pytest.mark.parametrize(
    "text", ["refine(solve, 1)", "critique(solve, 1)", "select(judge, solve, 2)"]
)
def test_workers_refuse_what_they_cannot_do(text: str) -> None:
    class Once(Scripted):
        refine = Scripted.__mro__[1].refine
        flags = Scripted.__mro__[1].flags
        choose = Scripted.__mro__[1].choose

    with pytest.raises(ValueError, match=r"Once cannot run .*: it asks no model again"):
        run(text, Once({"solve": [[1], [2]]}, 1))
