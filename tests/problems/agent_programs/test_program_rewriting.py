"""The rewriter: what it is asked, what of its answers counts, and the simulated one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from small_programs import search, two_types

from metaopt.llm import Client, NotUnderstood, Rejected, SimulatedLM
from metaopt.llm.chat import Message, Reply
from metaopt.optimizers.search import Trial
from metaopt.problems.agent_programs import AgentPrograms, Grammar, parse
from metaopt.problems.agent_programs.rewriting import asking, shown_errors, shown_program
from metaopt.problems.agent_programs.simulated_rewriter import SimulatedRewriter

GRAMMAR = Grammar(("solver",), {"sampled": (0,), "checked": (0,)}, calls=5)
EVIDENCE = [
    {"feature": "sampled", "threshold": 0, "questions": 50, "wrong": 0},
    {"feature": "checked", "threshold": 0, "questions": 40, "wrong": 30},
]


def trial(program: str, accuracy: float = 0.6, evidence: object = EVIDENCE) -> Trial:
    return Trial(
        program, 1 - accuracy, 1, {"accuracy": accuracy, "calls": 5.0, "evidence": evidence}
    )


def test_the_rewriter_is_told_the_language_the_programs_and_the_errors() -> None:
    trials = [trial("vote(solve, 5)"), trial("solve", 0.5)]
    (message,) = asking(GRAMMAR, trials, trials[0], evidence=True)
    text = message["content"]
    for part in (
        "route(feature > n, P, P)", "feature: sampled, checked", "may take 5 calls at most",
        "- 60.0 %, 5.00 calls: vote(solve, 5)\n- 50.0 %, 5.00 calls: solve",
        "- checked > 0: 40 questions, 30 wrong",
    ):  # fmt: skip
        assert part in text
    assert shown_program(text) == "vote(solve, 5)"
    assert shown_errors(text) == [("sampled", 0, 50, 0), ("checked", 0, 40, 30)]
    (blind,) = asking(GRAMMAR, trials, trials[0], evidence=False)
    assert shown_errors(blind["content"]) == []


def test_the_simulated_rewriter_gives_a_program_to_what_went_wrong() -> None:
    question = asking(GRAMMAR, [], trial("vote(solve, 5)"), evidence=True)
    rewriter, programs = SimulatedRewriter(GRAMMAR, skill=1.0), set()
    for key in range(20):
        program = parse(rewriter("rewriter", question, key).strip("`\n"), GRAMMAR)
        assert (program.block, program.name) == ("route", "checked")
        assert str(program.parts[1]) == "vote(solve, 5)"
        programs.add(program.parts[0])
    assert len(programs) > 10
    inner = "route(checked, solve, vote(solve, 5))"
    again = asking(GRAMMAR, [], trial(f"route(sampled, solve, {inner})"), evidence=True)
    for key in range(20):
        program = parse(rewriter("rewriter", again, key).strip("`\n"), GRAMMAR)
        kept, changed = program.parts[0], program.parts[1]
        assert str(kept) == "solve"
        assert (changed.name, str(changed.parts[1])) == ("checked", "vote(solve, 5)")


Answer = Callable[[str, Sequence[Message], int], str]


def written(answer: Answer, **arguments: object) -> AgentPrograms:
    client = partial(Client, limits={"lm_calls": 1000})
    roles = {"rewriter": SimulatedLM(answer)}
    return AgentPrograms(two_types(), client, roles, training=50, **arguments)


@pytest.mark.parametrize(
    "reply",
    [
        "I would route.\n```\nroute(checked, refine(solve, 2),\n      vote(solve, 3))\n```\nDone.",
        "```text\nsolve\n```\nor\n```text\nroute(checked, refine(solve, 2), vote(solve, 3))\n```",
        "Program:\n`route(checked, refine(solve,2), vote(solve,3))`\n",
    ],
)
def test_a_program_is_the_last_block_or_the_last_line(reply: str) -> None:
    problem = written(lambda role, messages, key: reply)
    new = problem.propose([trial("vote(solve, 5)")], 0)
    assert new == "route(checked, refine(solve, 2), vote(solve, 3))"


def test_what_is_no_program_goes_back_with_what_is_wrong() -> None:
    asked: list[str] = []

    def answer(role: str, messages: Sequence[Message], key: int) -> str:
        asked.append(messages[-1]["content"])
        return "vote(solve, 3)" if len(messages) == 5 - 2 else "```\nvote(solve, 50)\n```"

    problem = written(answer)
    assert problem.propose([trial("solve")], 0) == "vote(solve, 3)"
    assert "This is no legal program. Program: 50 calls of a question; at most 5" in asked[1]
    assert problem.rewriting.unreadable == 1


def test_the_best_program_is_run_again_where_none_is_written(tmp_path: Path) -> None:
    def answer(role: str, messages: Sequence[Message], key: int) -> str:
        known = messages[0]["content"].count(" calls: ") > 1
        return "__import__('os').abort()" if known else "solve"

    problem = written(answer)
    engine = search(problem, 4)
    history = engine.inner["history"]
    assert [e["program"] for e in history][:2] == ["vote(solve, 5)", "solve"]
    assert {e["program"] for e in history[2:]} == {engine.optimizer.solution}
    assert engine.optimizer.trials[0].evaluations == 3
    asked = 6 * 3  # redraws and attempts
    assert [e["unreadable"] for e in history] == [0, 0, asked, asked]
    said = problem.report.deliver(engine.optimizer.solution, engine.inner, [], tmp_path)
    assert f"answers of the rewriter that were no legal program: {2 * asked}" in said


def test_a_rewriter_that_never_writes_a_program_stops_the_run() -> None:
    problem = written(lambda role, messages, key: "rm -r secrets")
    with pytest.raises(NotUnderstood, match="none of 3 answers holds a legal program") as error:
        search(problem, 2)
    assert "secrets" not in str(error.value)


def test_a_failure_of_the_rewriter_is_no_program() -> None:
    class Failing(SimulatedLM):
        async def chat(self, role: str, *_: object) -> Reply:
            raise Rejected("no such model", role)

    problem = AgentPrograms(two_types(), roles={"rewriter": Failing(str)}, training=50)
    with pytest.raises(Rejected, match="no such model"):
        search(problem, 2)
