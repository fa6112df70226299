"""A user's file with a model behind a server that answers in a model's own ways, and a replay."""

import json

import pytest
from servers import Scripted, completion, error

from metaopt import Engine, Score
from metaopt.llm import Client, NotUnderstood, SimulatedLM
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.optimizers import Search
from metaopt.problems.metric_induction import FeedbackFile, MetricInduction, prompts
from metaopt.problems.metric_induction.metric_set import parse

ROWS = [
    {"trajectory": "1. asks", "feedback": "It asked me, great."},
    {"trajectory": "1. guesses", "feedback": "It never asked."},
] * 4


def script(asked):
    """Answer as models do: with emphasis, bullets, fences and words around the answer."""
    text = asked.text
    if text.startswith(prompts.EXTRACT):
        bad = "never" in text.partition("<feedback>")[2]
        return completion(f"Aspects:\n* **{'Bad' if bad else 'Good'}:** asking the user")
    if text.startswith(prompts.JUDGE):
        if not asked.before and "guesses" in text:
            return error(500, "overloaded", "0")
        sign = "+1" if "1. asks" in text else "\u22121"
        return completion(f"The run speaks for itself.\n\n**Rating: {sign}**")
    if text.startswith(prompts.GROUND):
        return completion("```\nAspect 1: trait 1\n```")
    return completion(
        'Here is one:\n<metric name="asks">\nDefinition: Whether it asks the user.\nExamples:\n'
        "- It asked.\n</metric>"
    )


def run(source, lm, mode, cassette):
    def client(lms):
        return Client(lms, mode, cassette, limits={"lm_calls": 200})

    task = MetricInduction(FeedbackFile(str(source)), client, model=lm)
    engine = Engine(task, Score(), Search(task.propose), outer_steps=2, seed=0)
    values = [feedback.value for _, feedback in engine]
    numbers = task.metrics(engine.optimizer.solution, engine.inner)
    task.client.close()
    return values, engine.optimizer.solution, numbers, task.client


@pytest.mark.slow
def test_a_server_plays_all_roles_and_is_replayed_without_it(tmp_path):
    source, cassette = tmp_path / "feedback.jsonl", tmp_path / "answers.cassette"
    source.write_text("\n".join(
        json.dumps({**row, "trajectory": f"run {i}: {row['trajectory']}"})
        for i, row in enumerate(ROWS)
    ))  # fmt: skip
    with Scripted(script) as server:
        lm = OpenAICompatibleLM("m-1", server.url, None)
        values, solution, numbers, client = run(source, lm, "record", cassette)
    assert values == [1.0, -1.0]  # the empty set, then one that covers all and is never redundant
    assert [metric.name for metric in parse(solution)] == ["asks"]
    assert numbers == {
        "coverage": 1, "redundancy": 0, "coverage_less_redundancy": 1, "metrics": 1,
    }  # fmt: skip
    guesses = sum("guesses" in row["trajectory"] for row in ROWS)
    assert client.failed == {"HTTP 500": guesses}  # each asked again once
    again = run(source, OpenAICompatibleLM("m-1", server.url, None), "replay", cassette)
    assert again[:3] == (values, solution, numbers)
    assert sum(again[3].sent.values()) == 0


def test_a_model_for_one_role_leaves_the_world_the_others():
    from problems.metric_induction.small_sets import problem

    task = problem(roles={"judge": SimulatedLM(lambda role, m, key: "Rating: 0", "zero")})
    models = {role: lm.model for role, lm in task.client.lms.items()}
    assert models["judge"] == "zero/0"
    assert all("feedback-world" in models[role] for role in ("extractor", "grounder", "rewriter"))


@pytest.mark.parametrize("odd", ["extractor", "judge", "grounder", "rewriter"])
def test_a_role_that_is_never_understood_ends_the_run(tmp_path, odd):
    source = tmp_path / "feedback.jsonl"
    source.write_text("\n".join(json.dumps({**row, "trajectory": f"run {i}: {row['trajectory']}"})
                                for i, row in enumerate(ROWS * 2)))  # fmt: skip
    replies = {"extractor": "good: asking", "judge": "Rating: +1", "grounder": "1: 1",
               "rewriter": '<metric name="asks">\nWhether it asks.\n</metric>'}  # fmt: skip
    lm = SimulatedLM(lambda role, m, key: "I am sorry." if role == odd else replies[role], "m")
    task = MetricInduction(FeedbackFile(str(source)), model=lm)
    with pytest.raises(NotUnderstood, match=f"^{odd}: 0 of "):
        for _ in Engine(task, Score(), Search(task.propose), outer_steps=3, seed=0):
            pass
