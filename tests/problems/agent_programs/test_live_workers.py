"""Live workers: a server on loopback that answers sums, through client, cassette and budget."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from servers import Asked, Scripted, Served, completion
from small_programs import grammar_of, search

from metaopt.engine import Engine
from metaopt.estimators import Score
from metaopt.llm import Client
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.optimizers import Search
from metaopt.problems.agent_programs import AgentPrograms, LiveWorkers, parse, question_file
from metaopt.problems.agent_programs.execution import execute
from metaopt.problems.agent_programs.worker_prompts import choice, found_wrong
from metaopt.problems.agent_programs.workers import everything

QUESTION = re.compile(r"Question: (\d+): add (\d+) and (\d+)")


def answer(asked: Asked) -> Served:
    """Return a solution: of odd questions the first is wrong, until something else is asked."""
    index, a, b = map(int, QUESTION.search(asked.text).groups())
    right = f"so it is {a + b}\nAnswer: {a + b}"
    if asked.text.startswith("Is the solution right?"):
        said = "right" if f"Answer: {a + b}" in asked.text else "wrong"
        return completion(f"I checked it.\nVerdict: {said}")
    if asked.text.startswith("Which of the solutions"):
        solutions = asked.text.split("Solution ")[1:]
        best = [n for n, text in enumerate(solutions, 1) if f"Answer: {a + b}" in text]
        return completion(f"They differ.\nChoice: {best[-1] if best else 1}")
    if asked.text.startswith("Answer the question") and index % 2 and asked.before == 0:
        return completion(f"Answer: {a + b + 1}")
    return completion(right)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [{"question": f"{i}: add {i} and 40", "answer": f"#### {i + 40}"} for i in range(10)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(answer) as made:
        yield made


def workers_of(path: Path, url: str) -> LiveWorkers:
    model = OpenAICompatibleLM("m-1", base_url=url, key_variable=None)
    return LiveWorkers(question_file(str(path)), {"solver": model}, max_tokens=64)


def problem_of(path: Path, url: str, **arguments: Any) -> AgentPrograms:
    client = partial(Client, **{"limits": {"lm_calls": 500}, **arguments.pop("client", {})})
    return AgentPrograms(
        workers_of(path, url), client, **{"training": 4, "calls": 3, "held_out": 4, **arguments}
    )


@pytest.mark.parametrize(
    ("text", "right", "calls"),
    [
        ("solve", [1, 0, 1, 0], [1, 1, 1, 1]),
        ("vote(solve, 3)", [1, 1, 1, 1], [3, 3, 3, 3]),
        ("refine(solve, 1)", [1, 1, 1, 1], [2, 2, 2, 2]),
        ("critique(solve, 1)", [1, 1, 1, 1], [2, 3, 2, 3]),
        ("debate(solve, solve, 1)", [1, 1, 1, 1], [2, 4, 2, 4]),
        ("select(judge, solve, 2)", [1, 1, 1, 1], [2, 3, 2, 3]),
        ("select(longest, solve, 2)", [1, 1, 1, 1], [2, 2, 2, 2]),
        ("route(words > 3, vote(solve, 3), solve)", [1, 1, 1, 1], [3, 3, 3, 3]),
    ],
)
def test_every_block_asks_the_server_as_often_as_it_counts(
    text: str, right: list[int], calls: list[int], path: Path, server: Scripted
) -> None:
    workers = workers_of(path, server.url)
    client = Client(workers.lms, limits={"lm_calls": 100})
    workers.bind(client)
    workers.thresholds = {"words": (3,)}
    program = parse(text, grammar_of(workers))
    workers.features = {"words": everything(10) * 0 + 4}
    result = execute(program, workers, everything(4), 11)
    client.close()
    assert result.right.astype(int).tolist() == right
    assert result.calls.tolist() == calls
    assert len(server.log) == sum(calls) == client.spent("solver")["lm_calls"]


def test_prompts_hold_what_a_block_is_about(path: Path, server: Scripted) -> None:
    workers = workers_of(path, server.url)
    client = Client(workers.lms, limits={"lm_calls": 100})
    workers.bind(client)
    for text in ("critique(solve, 1)", "debate(solve, solve, 1)"):
        execute(parse(text, grammar_of(workers)), workers, everything(2)[1:], 3)
    client.close()
    asked = [entry.text for entry in server.log]
    assert "Solution:\nAnswer: 42\n\nCritic:\nI checked it.\nVerdict: wrong" in asked[2]
    (one, other) = (text for text in asked if text.startswith("You and another"))
    assert one != other
    assert {text.count("Your solution:") for text in (one, other)} == {1}


def test_a_run_is_charged_what_the_server_saw_and_is_replayed_without_it(
    path: Path, tmp_path: Path
) -> None:
    record = {"mode": "record", "cassette": tmp_path / "answers.cassette"}
    with Scripted(answer) as server:
        problem = problem_of(path, server.url, client=record)
        engine = search(problem, 3)
    metrics, spent = engine.metrics(), problem.records.spent()
    problem.records.close()
    assert metrics["eval/control_calls"] == 3
    assert spent["lm_calls"] == len(server.log) + problem.client.spent("rewriter")["lm_calls"]
    replayed = problem_of(path, server.url, client={**record, "mode": "replay"})
    again = search(replayed, 3)
    assert again.metrics() == metrics
    assert again.inner["history"] == engine.inner["history"]
    assert replayed.records.spent() == spent
    replayed.records.close()


def test_a_killed_run_pays_for_no_answer_twice(
    path: Path, server: Scripted, tmp_path: Path
) -> None:
    def begin() -> Engine:
        problem = problem_of(path, server.url)
        problem.records.open(tmp_path / "run")
        optimizer = Search(problem.propose, problem.screen, accept="archive", archive_size=None)
        return Engine(problem, Score(1), optimizer, outer_steps=4)

    first = begin()
    for step, _ in first:
        if step == 2:
            break
    state, sent = first.state_dict(), len(server.log)
    lost = first.inner  # a step more, of which the checkpoint knows nothing
    for _ in first:
        break
    assert lost["number"] == 2
    more = len(server.log) - sent
    first.problem.records.close()
    second = begin()
    second.load_state_dict(state)
    for _ in second:
        pass
    second.finish()
    second.problem.records.close()
    assert more > 0
    spent = second.problem.client.spent("solver")
    assert spent["lm_calls"] == spent["lm_requests"] == len(server.log)


def test_a_budget_lasts_for_a_step_and_the_held_out_questions(path: Path, server: Scripted) -> None:
    needed = 4 * 3 + 4 * 2 * 3
    with pytest.raises(ValueError, match=rf"limits.lm_calls={needed} .* least {needed + 1} calls"):
        problem_of(path, server.url, client={"limits": {"lm_calls": needed}})
    with pytest.raises(ValueError, match="the model of solver may cost something"):
        problem_of(path, server.url, client={"limits": None})
    problem = problem_of(path, server.url, client={"limits": {"lm_calls": needed + 20}})
    engine = search(problem, 10)
    assert "another program and the held-out questions" in str(engine.stopped)
    assert engine.outer_step < 10
    assert engine.metrics()["eval/control_accuracy"] == 1
    problem.records.close()


def test_a_run_that_a_budget_cuts_short_is_not_chosen(path: Path, server: Scripted) -> None:
    problem = problem_of(path, server.url, client={"limits": {"lm_calls": 500, "tokens": 300}})
    engine = search(problem, 10)
    history = engine.inner["history"]
    assert 1 < engine.outer_step < 10
    assert "budget of 300 tokens is spent" in str(engine.stopped)
    assert history[-1]["accuracy"] < 1  # of requests that were not sent
    assert engine.optimizer.trials[0].value == history[0]["value"] == 0
    problem.records.close()


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        ("Verdict: wrong", True),
        ("**Verdict**: Right.", False),
        ("Verdict: wrong\nverdict: right", False),
        ("wrong", False),
        (None, False),
    ],
)
def test_a_critic_flags_by_its_last_verdict(reply: str | None, wrong: bool) -> None:
    assert found_wrong(reply) is wrong


@pytest.mark.parametrize(
    ("reply", "index"), [("Choice: 2", 1), ("Choice: 9", 0), ("the second", 0), (None, 0)]
)
def test_a_judge_chooses_by_its_last_choice(reply: str | None, index: int) -> None:
    assert choice(reply, 3) == index


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "answer": "1"}], "holds 1 questions; at least two are needed"),
        ([{"question": "a"}, {"question": "b", "answer": 2}], "'answer' must be a text"),
        ([{"question": "b", "answer": 2}, "c"], "is not an object"),
        ([{"question": " ", "answer": "1"}] * 2, "must not be empty"),
    ],
)
def test_questions_are_read_or_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        question_file(str(path))


def test_references_are_answers_or_worked_solutions(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    answers = ["#### 1,200", "so \\boxed{3/6}", 12, "The Answer.", "1999 or so"]
    rows = [{"q": f"question {i}", "a": a} for i, a in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    read = question_file(str(path), "q", "a")
    assert read.references == ("1200", "1/2", "12", "the answer", "1999 or so")


@pytest.mark.parametrize("models", [{}, {"rewriter": None}, {"a b": None}])
def test_models_have_names_that_programs_can_hold(models: dict[str, Any], path: Path) -> None:
    with pytest.raises(ValueError, match="LiveWorkers needs models, at least one, by names"):
        LiveWorkers(question_file(str(path)), models)


@pytest.mark.slow
def test_the_command_runs_on_a_server(metaopt: Any, path: Path, server: Scripted) -> None:
    done = metaopt(
        "problem=agent_programs", "data@problem.workers=agent_programs/live",
        f"problem.workers.data.source={path}", "problem.training=4", "problem.calls=3",
        "+llm@problem.workers.models.solver=openai_compatible",
        "problem.workers.models.solver.model=m-1",
        f"problem.workers.models.solver.base_url={server.url}",
        "problem.workers.models.solver.key_variable=null",
        "problem.client.limits={lm_calls: 500}", "outer_steps=3", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    rewritten = result["budget"]["lm_calls"] - len(server.log)
    assert 2 <= rewritten <= 6
    assert result["metrics"]["eval/control_accuracy"] == 1
    assert "held out, 6 questions" in done.out
