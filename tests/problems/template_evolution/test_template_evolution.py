"""Template evolution: what is kept, what is never scored, what stops it, and that it works."""

import json
from functools import partial

import numpy as np
import pytest

from metaopt import Engine
from metaopt.estimators import Score
from metaopt.llm import (
    CassetteMiss,
    Client,
    LMError,
    NotUnderstood,
    Parameters,
    PolicyRefusal,
    Rejected,
    Reply,
    SimulatedLM,
    Transient,
    Usage,
)
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.optimizers import Search
from metaopt.optimizers.search import Trial
from metaopt.problems.template_evolution import TemplateEvolution
from metaopt.problems.template_evolution.canary_world import CanaryWorld
from metaopt.problems.template_evolution.candidates import Panel, arrays, best, judged, recorded
from metaopt.problems.template_evolution.prompts import quotes
from metaopt.problems.template_evolution.tasks import PromptFile


def problem(seed=0, queries=2, world=None, **settings):
    return TemplateEvolution(CanaryWorld(queries, seed, **(world or {})), **settings)


def searched(of, evolve=True):
    if not evolve:
        return Search()
    return Search(of.propose, of.screen, "archive", None, proposals=4, redraws=3, rank="screen")


def run(of, evolve=True, outer_steps=6, inner_steps=5, seed=0):
    engine = Engine(
        of, Score(inner_steps), searched(of, evolve), outer_steps=outer_steps, seed=seed
    )
    return engine, [feedback for _, feedback in engine]


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.slow
def test_the_default_beats_the_fixed_template(seed):
    metrics = {}
    for evolve, ranking in ((True, "label_first"), (False, "dense")):
        engine, _ = run(problem(seed, 5, ranking=ranking), evolve, seed=seed)
        metrics[evolve] = engine.metrics()
    assert metrics[True]["eval/success"] > metrics[False]["eval/success"] + 20
    assert metrics[True]["eval/auroc"] > metrics[False]["eval/auroc"] + 0.1


@pytest.mark.slow
def test_concurrency_changes_nothing():
    logs = []
    for concurrency in (1, 64):
        of = problem(client=partial(Client, concurrency=concurrency), world={"error_rate": 0.05})
        engine, feedbacks = run(of, outer_steps=3)
        logs.append((engine.inner, engine.optimizer.solution, [f.cost for f in feedbacks]))
    assert logs[0] == logs[1]


def test_a_run_keeps_the_counts_of_the_paper():
    of = problem(candidates=10, inherited=5, prompts_per_step=5, world={"parse_failures": 0.0})
    engine, feedbacks = run(of, evolve=False, outer_steps=2)
    each = engine.inner["log"]
    assert len(each) <= 2 * (10 + 5 * 5)
    assert of.client.spent("optimizer")["lm_calls"] == 2 * 2 * 5
    assert of.client.spent("target")["lm_calls"] <= 2 * (10 + 25 + 5 + 25)
    assert sum(f.cost["lm_calls"] for f in feedbacks) == of.client.spent()["lm_calls"]


def test_the_best_are_inherited_and_judged_again():
    of = problem()
    first = of.inner_step("", of.init_inner(of.task.template, None, 1), 2)
    again = of.init_inner(of.task.template, first, 3)
    for query in (0, 1):
        expected = {c["prompt"] for c in best(first["log"], query, 5, "label_first")}
        assert expected <= {c["prompt"] for c in again["log"]}
        assert sum(c["query"] == query for c in again["log"]) == 10
    assert again["round"] == 2


def candidate(prompt, score, outcome, query=0):
    return {"query": query, "prompt": prompt, "response": "r", "outcome": outcome, "score": score}


LOG = [
    candidate("a", 9.0, False), candidate("b", 2.0, True), candidate("c", None, True),
    candidate("d", 9.0, None), candidate("e", 5.0, True), candidate("f", 10.0, True, query=1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ranking", "order"), [("label_first", "ebcad"), ("dense", "adebc"), ("random", "abcde")]
)
def test_rankings(ranking, order):
    assert "".join(c["prompt"] for c in best(LOG, 0, 9, ranking)) == order


def test_unscored_and_ambiguous_candidates_are_left_out():
    rows = judged(LOG)
    assert [c["prompt"] for c in rows] == list("abef")
    p, y = arrays(rows)
    assert p == pytest.approx([8 / 9, 1 / 9, 4 / 9, 1])
    assert y.tolist() == [0, 1, 1, 1]


def test_recorded_candidates_are_the_same_when_a_log_is_read_again():
    few = recorded([LOG], 2)
    assert [c["prompt"] for c in few] == ["b", "c", "a"]
    assert recorded([LOG, LOG[:2]], 2) == few


class Failing:
    """Answers "ok", and fails for prompts that say so."""

    model, deterministic = "failing", False

    def __init__(self):
        self.asked = []

    async def chat(self, role, messages, parameters, rollout):
        text = messages[-1]["content"]
        self.asked.append(text)
        if "fail" in text:
            raise Transient("down", role, after=0.0)
        if "reject" in text:
            raise Rejected("too long", role)
        if "forbidden" in text:
            raise PolicyRefusal("not allowed", role)
        return Reply("Score: 9.0" if "Response:" in text else f"ok {text}", Usage(5, 5))

    async def close(self):
        pass


def panel(lm, check=lambda query, response, key: "good" in response, **settings):
    client = Client({"target": lm, "judge": lm, "checker": lm}, attempts=2)
    return Panel(client, ["be good"], check, Parameters(), **settings)


def test_a_rejected_request_makes_neither_score_nor_outcome():
    of = panel(Failing())
    answered = of.answer([(0, "good"), (0, "reject"), (0, "bad")])
    assert [c["outcome"] for c in answered] == [True, False]
    ref = of.client.keep("Response: reject")
    scored = of.judge("t", [*answered, {**answered[0], "response": ref}])
    assert [c["score"] for c in scored] == [9.0, 9.0, None]


def test_an_outage_is_no_result():
    of = panel(Failing())
    prompts = [(0, "good"), (0, "fail"), (0, "bad"), (0, "poor")]
    with pytest.raises(LMError, match="target: 1 of 4 requests failed: down"):
        of.answer(prompts)
    assert of.client.lms["target"].asked.count("fail") == 4  # twice all its attempts


def test_a_policy_refusal_stops_and_is_not_asked_again():
    lm = Failing()
    of = panel(lm)
    assert of.answer([(0, "good")])
    assert of.answer([(0, "forbidden")]) == []
    assert "forbidden" not in lm.asked[:-1]
    sent = len(lm.asked)
    assert of.client.stopped
    assert of.answer([(0, "forbidden"), (0, "another")]) == []
    assert len(lm.asked) == sent


def test_an_unclear_verdict_of_the_checker_is_no_outcome():
    said = {"good": "Yes.", "bad": "no", "hm": "perhaps"}

    def answer(role, messages, key):
        text = messages[-1]["content"]
        if role == "checker":
            return next(verdict for word, verdict in said.items() if f"\n{word}\n" in text)
        return text

    answered = panel(SimulatedLM(answer), check=None).answer([(0, w) for w in said])
    assert [c["outcome"] for c in answered] == [True, False, None]


def test_a_claimed_success_must_hold_more_often_than_not():
    draws = iter([True, False, False, False])
    lm = Failing()
    of = panel(lm, check=lambda query, response, key: next(draws), verify=3)
    answered = of.answer([(0, "a"), (0, "b")])
    assert [c["outcome"] for c in answered] == [False, False]
    assert len(lm.asked) == 4  # "b" failed at once and was not asked again


def test_a_spent_budget_ends_the_run_and_keeps_what_was_paid_for():
    of = problem(client=partial(Client, limits={"lm_calls": 200}))
    engine, feedbacks = run(of)
    assert engine.outer_step < 6
    assert "budget of 200 lm_calls" in engine.stopped
    assert sum(f.cost["lm_calls"] for f in feedbacks) <= 200
    assert engine.inner["log"]
    assert float(feedbacks[0].value) < 1


@pytest.mark.parametrize(
    ("limits", "budget", "said"),
    [
        ({"lm_calls": 60}, None, r"limits.lm_calls=60 is too small .* 150 calls"),
        (None, {"target": {"lm_calls": 60}}, r"budget.target.lm_calls=60 is too small .* 70 calls"),
    ],
)
def test_a_budget_too_small_for_a_step_is_refused_with_the_estimate(limits, budget, said):
    with pytest.raises(ValueError, match=said):
        problem(client=partial(Client, limits=limits, budget=budget))


def test_a_useless_template_is_rejected_without_a_run():
    of = problem()
    _, feedbacks = run(of, outer_steps=1)
    trials = [type("Trial", (), {"outer": of.task.template, "artifacts": feedbacks[0].artifacts})]
    assert of.screen("Be kind.", trials) == float("inf")
    assert np.isfinite(of.screen(of.task.template, trials))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "accuracy"}, "objective to be one of mae, balanced"),
        ({"ranking": "best"}, "ranking to be one of label_first"),
        ({"checker": "me"}, "checker to be one of task, lm"),
        ({"candidates": 1}, "candidates >= 2; got candidates=1"),
        ({"inherited": 11}, "0 <= inherited <= candidates; got inherited=11, candidates=10"),
        ({"verify": 0}, "verify >= 1; got verify=0"),
        ({"checker": "lm"}, "no language model plays the role checker"),
        ({"roles": {"target": Failing()}}, "needs an authorisation"),
        ({"roles": {"optimizer": Failing()}}, "needs problem.instruction"),
    ],
)
def test_wrong_arguments_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        problem(**settings)


def test_a_task_of_ones_own_needs_language_models(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"query": "q", "success": "x"}\n')
    with pytest.raises(ValueError, match=r"\+llm@problem.roles.target=openai_compatible"):
        TemplateEvolution(PromptFile(str(path)))


def test_a_role_that_never_answers_stops_the_run_and_says_why():
    of = panel(Failing())
    with pytest.raises(LMError, match=r"target: 3 of 3 requests failed: .*down"):
        of.answer([(0, f"fail {i}") for i in range(3)])


def test_a_replay_without_an_answer_raises(tmp_path):
    tape = tmp_path / "tape.sqlite"
    for mode in ("record", "replay"):
        client = Client({"target": Failing()}, mode=mode, cassette=tape)
        of = Panel(client, ["q"], lambda query, response, key: True, Parameters())
        assert of.answer([(0, "a")])
        if mode == "replay":
            with pytest.raises(CassetteMiss):
                of.answer([(0, "a"), (0, "b")])
        client.close()


def test_the_template_never_sees_the_queries_it_is_measured_on(tmp_path):
    """A judge that is noise must not look informative on the held-out half."""
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"query": f"q{i}", "success": "yes"}) for i in range(4)))
    asked = []

    def answer(role, messages, key):
        text = messages[-1]["content"]
        if role == "template":
            asked.append(text)
            return f"<template>\nTemplate {key}\nScore: <number>\n</template>"
        if role == "optimizer":
            return "\n".join(
                f"- p{(key + i) % 997} {text.split('Objective: q')[1][0]}" for i in range(5)
            )
        if role == "judge":
            return f"Score: {1 + key % 19 / 2}"
        return f"{'yes' if key % 2 else 'no'} {text}"

    roles = {role: SimulatedLM(answer) for role in ("target", "judge", "optimizer", "template")}
    of = TemplateEvolution(PromptFile(str(path)), roles=roles)
    engine, _ = run(of, outer_steps=3)
    logged = {c["query"] for c in engine.inner["log"]}
    assert logged == {0, 1, 2, 3}
    shown = " ".join(asked)
    assert shown.count("<response") > 0
    quoted = [c for c in engine.inner["log"] if of.client.text(c["response"]) in shown]
    assert {c["query"] for c in quoted} <= {0, 2}


def test_a_template_that_quotes_a_response_is_not_taken():
    of = problem(queries=4)
    _, feedbacks = run(of, outer_steps=1)
    parent = Trial(of.task.template, 0.5, 1, feedbacks[0].artifacts)
    log = feedbacks[0].artifacts
    leak = of.client.text(log[0]["response"])

    def leaking(role, messages, key):
        text = messages[-1]["content"]
        response = text.split("<response ")[1].split(">\n")[1].split("\n</response>")[0]
        return f"<template>\nLike this one: {response}\nScore: <number>\n</template>"

    of.client.lms["template"] = SimulatedLM(leaking)
    assert leak not in of.propose([parent], 1)
    assert of.propose([parent], 1) == of.task.template
    assert quotes(f"such as {leak}", [leak])
    assert not quotes("specificity", [leak])


def test_verification_counts_known_outcomes_only():
    outcomes = iter([True, None, None, True, None, True])
    of = panel(Failing(), check=lambda query, response, key: next(outcomes), verify=3)
    answered = of.answer([(0, "a")])
    assert [c["outcome"] for c in answered] == [None]
    answered = of.answer([(0, "b")])
    assert [c["outcome"] for c in answered] == [True]


def test_a_model_that_may_cost_something_needs_a_budget():
    lm = OpenAICompatibleLM("m", "http://127.0.0.1:9/v1", key_variable=None)
    with pytest.raises(ValueError, match="needs a budget: limits"):
        problem(roles={"judge": lm})
    assert problem(roles={"judge": lm}, client=partial(Client, limits={"lm_calls": 999}))


def test_a_role_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="roles names 'jugde'"):
        problem(roles={"jugde": SimulatedLM(lambda role, messages, key: "")})


@pytest.mark.parametrize("words", ["I give it eight of ten.", ""])
def test_a_judge_that_is_not_understood_stops_at_the_first_template(words):
    lm = SimulatedLM(lambda role, messages, key: words, "prose")
    with pytest.raises(NotUnderstood, match=r"(?s)20 of 20 replies are not understood.*`Score: 8`"):
        run(problem(roles={"judge": lm}))


def test_a_real_judge_is_not_examined_by_the_simulated_one():
    lm = SimulatedLM(lambda role, messages, key: "Score: 5.0", "constant")
    engine, _ = run(problem(roles={"judge": lm}), outer_steps=1)
    assert set(engine.metrics()) == {"eval/success"}


def test_the_planted_traits_of_a_template_are_among_the_metrics():
    """The first template weighs eight of ten criteria, and one of three signal traits rightly."""
    engine, _ = run(problem(), evolve=False, outer_steps=1, inner_steps=1)
    metrics = engine.metrics()
    assert metrics["eval/template_coverage"] == 1 / 3
    assert metrics["eval/template_redundancy"] == 7 / 8
