"""Whole runs on a file of prompts, with judges behind a server: faults, kill -9, budgets."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from processes import Command
from servers import Asked, Scripted, Served, completion, error

from metaopt import load
from metaopt.llm.rubric_items import Item, parse_items
from metaopt.problems.meta_policy_optimization import prompts
from metaopt.problems.meta_policy_optimization.item_scores import render
from metaopt.testing.trees import identical

pytestmark = pytest.mark.slow

PROMPTS = [{"id": 7, "prompt": "say red or blue"}, {"id": 8, "prompt": "say one or two"}]
FINE = completion("x")
FAULTS = [
    error(429, "slow down", after="0"),
    error(500, "out of order"),
    FINE._replace(body=FINE.body[:40]),  # JSON that is cut
    FINE._replace(body=FINE.body[:40], claim=100),  # a connection that is lost
    Served(200, b"<html>log in</html>", {"Content-Type": "text/html"}),
    completion(""),
    Served(200, b""),
]
PLAYERS = ("judge", "meta", "second_judge")


def overrides(server: Scripted, players: tuple[str, ...] = PLAYERS) -> list[str]:
    """Return the words of a run on a file of prompts, its judges behind a server."""
    words = [
        "problem=meta_policy_optimization/text", "outer_steps=3", "inner_steps=2", "eval_every=3",
        "data@problem.policy.world=meta_policy_optimization/prompt_file",
        "problem.policy.world.source=prompts.jsonl", "problem.policy.teaching_steps=0",
        "problem.policy.world.rubric={Is good: 5, Repeats itself: -3}",
        "problem.policy.queries_per_update=2", "problem.policy.group_size=4",
        "problem.policy.evaluation=4", "problem.policy.max_tokens=8",
        "problem.policy.model.source.hidden_size=16", "problem.rollouts=4",
        "problem.client.limits={lm_calls: 10000}",
    ]  # fmt: skip
    for role in players:
        node = f"problem.roles.{role}"
        words += [
            f"+llm@{node}=openai_compatible", f"{node}.base_url={server.url}",
            f"{node}.model={role}", f"{node}.name={role}", f"{node}.key_variable=null",
        ]  # fmt: skip
    return words


def draw(*words: str) -> int:
    return zlib.crc32("\n".join(words).encode())


def answer(asked: Asked) -> Served:
    """Play judge and meta judge, as functions of what is asked; one judgement in eight has none."""
    text, role = asked.text, asked.body["model"]
    if role == "meta":
        items = [Item("Is good", 5.0), Item(f"Says {draw(text) % 97}", 2.0)]
        if text.startswith(prompts.ANALYSE):
            return completion(f"It repeats itself, {draw(text)}.")
        return completion(f"<rubric>\n{render(dict(items), free=True)}\n</rubric>")
    if draw(text, role) % 8 == 0:
        return completion("I would give it full marks.")
    points = [draw(text, role, item.text) % 3 * (1 if item.points > 0 else -1) for item in
              parse_items(text)]  # fmt: skip
    lines = [f"Fine.\nItem {i}: {each}" for i, each in enumerate(points, 1)]
    return completion("\n".join([*lines, f"Total: {sum(points)}"]))


def fault(asked: Asked) -> Served | None:
    """Return what a third of the questions meet at their first try, mostly once, some twice."""
    number = draw(asked.text, asked.body["model"])
    meets = asked.before < (number % 3 == 0) + (number % 15 == 0)
    return FAULTS[(number // 15 + asked.before) % len(FAULTS)] if meets else None


def keyed(log: list[Asked]) -> list[tuple[str, str]]:
    return [(asked.body["model"], asked.text) for asked in log]


def finished(folder: Path) -> dict[str, Any]:
    """Return what must be equal, whatever a server did: all but failed requests and time."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if not k.startswith(("time/", "budget/"))} for line in
           lines]  # fmt: skip
    names = ("metrics", "outer_steps", "stopped")
    return {"log": log, "calls": result["budget"]["lm_calls"], **{k: result[k] for k in names}}


@pytest.fixture
def prompt_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("metaopt.llm.pace._backoff", lambda state: 0.0)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


def assert_equal(whole: Path, other: Path) -> None:
    assert finished(whole) == finished(other)
    first, second = map(load, (whole, other))
    assert identical([first.outer, first.inner], [second.outer, second.inner])
    assert (whole / "rubric.json").read_text() == (other / "rubric.json").read_text()


def test_faults_kills_and_budgets_lose_no_answer(
    metaopt: Callable[..., Any], tmp_path: Path, prompt_file: Path
) -> None:
    """Undisturbed, by a faulty server, killed in an update, and out of budget: all are equal."""
    with Scripted(answer) as server:
        done = metaopt(*overrides(server), "hydra.run.dir=whole")
        assert done.code == 0, done.err
        asked = keyed(server.log)
    whole = tmp_path / "whole"
    budget = json.loads((whole / "result.json").read_text())["budget"]
    assert len(asked) == len(set(asked)) == budget["lm_calls"] == budget["lm_requests"]
    history = json.loads((whole / "rubric.json").read_text())["history"]
    assert len(set(history)) == 3
    assert "<item number=2 points=+2>\nSays " in history[2]
    log = finished(whole)["log"]
    assert min(line["inner/coverage"] for line in log) < 1  # what states no score enters nothing
    assert {"eval/kl", "eval/length", "eval/distinct_2", "eval/second_judge_gain"} <= set(log[-1])
    assert "eval/quality" not in log[-1]
    assert "second judge, less the first policy's" in done.out

    met: list[Served] = []

    def faulty(asked: Asked) -> Served:
        failure = fault(asked)
        met.extend([failure] * (failure is not None))
        return failure or answer(asked)

    with Scripted(faulty) as server:
        done = metaopt(*overrides(server), "hydra.run.dir=faulty")
        assert done.code == 0, done.err
        assert set(keyed(server.log)) == set(asked)
        assert len(server.log) == len(asked) + len(met)  # each answer came, and once
    assert {id(each) for each in met} == {id(each) for each in FAULTS}
    assert_equal(whole, tmp_path / "faulty")
    budget = json.loads((tmp_path / "faulty" / "result.json").read_text())["budget"]
    assert budget["lm_requests"] == len(asked) + len(met)

    running: list[Command] = []

    def killing(asked: Asked) -> Served:
        if running and len(server.log) == len(set(asked_texts)) // 2:
            running[0].send(signal.SIGKILL)
        return answer(asked)

    asked_texts = asked
    with Scripted(killing) as server:
        words = [*overrides(server), "problem.client.concurrency=1", "hydra.run.dir=killed"]
        running.append(Command(tmp_path, *words))
        assert running[0].end() == -signal.SIGKILL
        assert server.log.pop().body["model"] == "judge"  # in an update; its answer never arrived
        done = metaopt("resume=killed")
        assert done.code == 0, done.err
        assert sorted(keyed(server.log)) == sorted(asked)
    assert_equal(whole, tmp_path / "killed")

    with Scripted(answer) as server:
        limits = f"problem.client.limits={{lm_calls: {len(asked) * 2 // 3}}}"
        done = metaopt(*overrides(server), limits, "hydra.run.dir=stopped")
        assert done.code == 0, done.err
        result = json.loads((tmp_path / "stopped" / "result.json").read_text())
        assert "budget" in result["stopped"]["text"]
        assert len(server.log) == result["budget"]["lm_calls"] == len(asked) * 2 // 3
        again = ("problem.client.mode=record", "problem.client.cassette=stopped.cassette")
        done = metaopt(*overrides(server), *again, "hydra.run.dir=more")
        assert done.code == 0, done.err
        assert sorted(keyed(server.log)) == sorted(asked)  # what was paid for is not asked again
    assert_equal(whole, tmp_path / "more")


def test_a_judge_that_states_no_scores_ends_the_run_with_what_to_do(
    metaopt: Callable[..., Any], prompt_file: Path
) -> None:
    with Scripted(lambda asked: completion("Item 1: five\nTotal: five")) as server:
        done = metaopt(*overrides(server, PLAYERS[:2]), "hydra.run.dir=run")
    assert done.code == 1
    assert "judge: 4 of 4 rollouts have no score" in done.err
    assert "problem.judging.per_item=true" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem.policy.world.source": "prompt.jsonl"}, "did you mean prompts.jsonl?"),
        ({"problem.policy.world.column": "query"}, "rows of prompts.jsonl hold no query"),
        ({"problem.policy.teaching_steps": "9"}, "Set problem.policy.teaching_steps=0"),
        ({"problem.policy.queries_per_update": "3"}, "1 <= queries_per_update <= count"),
        ({"problem.client.limits": "{lm_calls: 20}"}, "is too small for one outer step"),
        ({"problem.client.limits": "null"}, "may cost something, so it needs a budget"),
        ({"problem.labels": "3"}, "labels need a policy whose truth is known"),
    ],
)
def test_a_mistake_is_a_sentence_and_leaves_no_folder(
    metaopt: Callable[..., Any], prompt_file: Path, change: Mapping[str, str], said: str
) -> None:
    with Scripted(answer) as server:
        words = [f"{key}={value}" for key, value in change.items()]
        done = metaopt(*overrides(server), *words, "hydra.run.dir=run")
        assert server.log == []
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (prompt_file.parent / "run").exists()
