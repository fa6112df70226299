"""Programs: their text, what is legal, and their limits."""

from __future__ import annotations

import numpy as np
import pytest

from metaopt.problems.agent_programs import Grammar, InvalidProgram, Program, parse
from metaopt.problems.agent_programs.drawing import mutated, random_program
from metaopt.problems.agent_programs.programs import at, paths

GRAMMAR = Grammar(("solver",), {"numbers": (3, 5), "money": (0,)}, ("judge", "longest"), calls=9)
TWO = Grammar(("6b_x", "b.c"), {"words": (30,)}, ("longest",), fresh=False, calls=2)
SOLVE = Program("solve")


@pytest.mark.parametrize("grammar", [GRAMMAR, TWO], ids=["fresh", "recorded"])
def test_a_program_is_read_from_its_text(grammar: Grammar) -> None:
    draw, blocks = np.random.default_rng(0), set()
    for _ in range(50):
        program = random_program(grammar, draw)
        other = mutated(program, grammar, draw)
        for each in (program, other):
            assert parse(str(each), grammar) == each
            assert grammar.fits(each)
            blocks |= {at(each, path).block for path in paths(each)}
    assert blocks == {*grammar.blocks}


def test_the_canonical_form_leaves_out_what_may_be() -> None:
    text = "route ( numbers>3 ,vote(solve( solver ) ,5),\n route(money > 0, solve, solve))"
    assert str(parse(text, GRAMMAR)) == (
        "route(numbers > 3, vote(solve, 5), route(money, solve, solve))"
    )
    assert parse("vote(solve, solve)", GRAMMAR) == Program("vote", (SOLVE, SOLVE))
    assert parse("vote(solve, 2)", GRAMMAR) == Program("vote", (SOLVE,), 2)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "the end of the text is no block; legal blocks are solve, vote, select"),
        ("vot(solve, 3)", 1, "'vot' is no block; legal blocks are"),
        ("vote(solve)", 11, r"'\)', where only , of vote\(P, n\) or vote\(P, P, ...\) is legal"),
        ("vote(solve, 1)", 13, "'1', where the n of vote.* is legal: a whole number from 2 to"),
        ("vote(solve, 3, solve)", 14, "',', where only"),
        ("refine(solve, 0)", 15, "'0', where the n of refine"),
        ("refine(solve, 1", 16, r"the end of the text, where only \) of refine\(P, n\) is legal"),
        ("solve(x)", 7, "'x' is no worker; legal are solver"),
        ("solve solve", 7, "'solve', where only the end of the text is legal"),
        ("route(size, solve, solve)", 7, "'size' is no feature; legal are numbers, money"),
        ("route(numbers > , solve, solve)", 17, "',', where the threshold is legal"),
        ("select(best, solve, 2)", 8, "'best' is no criterion; legal are judge, longest"),
        ("debate(solve, 2)", 15, "'2' is no block"),
        ("vote(solve; 3)", 11, "';' is not legal; a program has names, whole numbers"),
        ("vote(solve, 10)", None, r"10 calls of a question; at most 9 are legal \(calls=9\)"),
        ("refine(" * 7 + "solve" + ", 1)" * 7, 43, r"more than 6 blocks deep \(depth=6\)"),
        ("vote(solve, 99999999999)", 13, "to 1000"),
    ],
)
def test_what_is_no_program_is_refused_with_its_place(
    text: str, column: int | None, message: str
) -> None:
    with pytest.raises(InvalidProgram, match=message) as error:
        parse(text, GRAMMAR)
    place = "Program:" if column is None else f"Program, column {column}:"
    assert str(error.value).startswith(place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("solve", r"solve needs a worker, as solve\(6b_x\); workers are 6b_x, b.c"),
        ("refine(solve(6b_x), 1)", "refine needs a fresh call of a model, and the workers are rec"),
        ("critique(solve(6b_x), 1)", "critique needs a fresh call"),
        ("debate(solve(6b_x), solve(b.c), 1)", "debate needs a fresh call"),
        ("select(judge, solve(6b_x), solve(b.c))", r"select\(judge, ...\) needs a fresh call"),
        ("vote(solve(6b_x), 2)", "one program n times, and a recorded worker has one solution"),
        ("select(longest, solve(6b_x), 2)", r"as select\(longest, P, P\)"),
    ],
)
def test_recorded_workers_refuse_a_fresh_call(text: str, message: str) -> None:
    with pytest.raises(InvalidProgram, match=message):
        parse(text, TWO)


def test_other_limits_are_refused() -> None:
    with pytest.raises(InvalidProgram, match=r"6 blocks; at most 5 are legal \(size=5\)"):
        parse("vote(solve, solve, solve, solve, solve)", Grammar(("s",), {}, size=5))
    with pytest.raises(InvalidProgram, match="4001 characters; at most 4000"):
        parse("x" * 4001, GRAMMAR)
    plain = Grammar(("s",), {}, ())
    with pytest.raises(InvalidProgram, match="these workers have no features to route by"):
        parse("route(x, solve, solve)", plain)
    with pytest.raises(InvalidProgram, match="no criteria to select by; legal are solve, vote, re"):
        parse("select(judge, solve, 2)", plain)
    with pytest.raises(ValueError, match="1 <= calls <= 1000; got calls=0"):
        Grammar(("s",), {}, calls=0)
    for names in (("a b",), ("12",), ()):
        with pytest.raises(ValueError, match="names of workers and features that are of letters"):
            Grammar(names, {})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("solve", 1),
        ("vote(refine(solve, 2), 3)", 9),
        ("critique(solve, 2)", 5),
        ("debate(solve, refine(solve, 1), 2)", 7),
        ("select(judge, solve, 3)", 4),
        ("select(longest, solve, 3)", 3),
        ("route(money, vote(solve, 4), critique(solve, 3))", 7),
    ],
)
def test_the_most_calls_of_a_question(text: str, calls: int) -> None:
    assert parse(text, GRAMMAR).calls == calls


def test_of_recorded_workers_a_call_is_a_different_one() -> None:
    a, b = "solve(6b_x)", "solve(b.c)"
    for text, calls in (
        (f"vote({a}, {a}, {a})", 1),
        (f"route(words > 30, {a}, {b})", 1),
        (f"vote({a}, route(words > 30, {a}, {b}))", 2),
        (f"vote(vote({a}, {b}), {b}, {a})", 2),
    ):
        assert TWO.calls_of(parse(text, TWO)) == calls
