"""Judge calibration on a made-up world of sums, and on GSM8K where it is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from small_judges import Paid, by_length, make, run, written

from metaopt.data.solutions import Solution, Solutions, solutions
from metaopt.llm import Client, NotUnderstood, Request, SimulatedLM
from metaopt.llm.chat import Message, Reply
from metaopt.llm.rubric import FOOTER, Rubric, parse
from metaopt.optimizers.search import Trial
from metaopt.problems.template_evolution import JudgeCalibration
from metaopt.problems.template_evolution.criteria_judge import FIRST, criteria_judge
from metaopt.problems.template_evolution.prompts import judging, shown_examples
from metaopt.problems.template_evolution.report import best_of
from metaopt.problems.template_evolution.solution_criteria import CRITERIA, measure


@pytest.fixture
def data(tmp_path: Path) -> Solutions:
    return solutions(str(written(tmp_path)))


def score(lm: SimulatedLM, template: str, query: str, response: str) -> str:
    client = Client({"judge": lm})
    (reply,) = client.ask([Request("judge", judging(template, query, response))])
    client.close()
    assert isinstance(reply, Reply)
    return reply.text.splitlines()[-1]


def test_the_judge_adds_up_standardised_criteria(data: Solutions) -> None:
    texts = [(data.queries[r.query], r.response) for r in data.rows]
    values = StandardScaler().fit_transform(np.array([measure(*t) for t in texts]))
    weights = dict(zip(CRITERIA, np.linspace(-1, 1, len(CRITERIA)).round(2), strict=True))
    template, lm = Rubric(weights, 0.25).render(), criteria_judge(texts)
    for i in range(0, len(texts), 17):
        logit = values[i] @ list(weights.values()) - 0.25
        expected = round(2 * (1 + 9 / (1 + np.exp(-logit)))) / 2
        assert score(lm, template, *texts[i]) == f"Score: {expected:.1f}"


def test_a_template_without_known_criteria_gets_no_score(data: Solutions) -> None:
    lm = criteria_judge([("q", "r")])
    assert "Score" not in score(lm, "Be kind.\n" + FOOTER, "q", "r")
    assert "Score" not in score(lm, Rubric({"kindness": 1.0}).render(), "q", "r")


def test_more_labels_than_there_are_are_mentioned(
    data: Solutions, caplog: pytest.LogCaptureFixture
) -> None:
    count = len(make(data, labelled=5000).labelled)
    assert caplog.messages == [
        f"labelled=5000 is more than the {count} training responses with an outcome: all of them "
        "are used."
    ]
    make(data, labelled=count)
    assert len(caplog.messages) == 1


def test_training_and_held_out_questions_are_apart_and_labels_are_whole_questions(
    data: Solutions,
) -> None:
    problem = make(data, labelled=31)
    assert len(problem.labelled) == 33
    trained, held_out = ({r.query for r in rows} for rows in (problem.labelled, problem.test))
    assert len(trained) == 11
    assert len(held_out) == 30
    assert problem.resplit == 1
    assert not trained & held_out
    assert {r.query for r in make(data, seed=1).test} != held_out
    assert len({r.query for r in make(data, held_out=4).test}) == 4


def test_the_logistic_template_scores_with_the_probability_of_a_logistic_regression(
    data: Solutions,
) -> None:
    problem = make(data, template="logistic")
    train, _ = data.split(0.5, 0)
    values = {r: measure(data.queries[r.query], r.response) for r in data.rows}
    scaler = StandardScaler().fit([values[r] for r in data.rows if r.query in train])
    fitted = LogisticRegression().fit(
        scaler.transform([values[r] for r in problem.labelled]),
        [r.outcome for r in problem.labelled],
    )
    expected = fitted.predict_proba(scaler.transform([values[r] for r in problem.test]))[:, 1]
    scores = problem.examine(problem.template)
    assert np.abs((np.array(scores, float) - 1) / 9 - expected).max() < 0.25 / 9 + 0.01


def test_equal_scores_share_the_pick() -> None:
    rows = [Solution(q, "", o) for q, o in ((0, True), (0, False), (1, True), (1, False))]
    assert best_of([5.0, 5.0, 1.0, 2.0], rows) == 0.25
    assert best_of([None, 1.0, None, None], rows) == 0.25
    assert best_of([2.0, 1.0, 2.0, None], rows) == 1.0


@pytest.mark.parametrize("objective", ["mae", "balanced", "brier", "balanced_brier", "auroc"])
def test_a_search_finds_a_better_template_for_other_questions(
    data: Solutions, objective: str
) -> None:
    problem = make(data, objective=objective)
    engine = run(problem, 20)
    losses = [trial["loss"] for trial in engine.inner["tried"]]
    assert len(losses) == 20
    assert min(losses) < losses[0] - 0.02
    outcomes = [r.outcome for r in problem.test]
    first, best = (
        roc_auc_score(outcomes, problem.examine(template))
        for template in (problem.template, engine.optimizer.solution)
    )
    assert best > first + 0.05
    assert problem.metrics(engine.optimizer.solution, engine.inner)["auroc"] == pytest.approx(best)


def test_the_number_of_requests_at_once_changes_nothing(data: Solutions) -> None:
    states = [
        run(make(data, client=partial(Client, concurrency=n), examples=2), 4).state_dict()
        for n in (1, 64)
    ]
    assert states[0] == states[1]


def test_any_model_may_judge_and_a_failure_is_no_score(data: Solutions) -> None:
    lm = Paid(by_length, fails=lambda text: "Objective: 1" in text)
    problem = make(data, judge=lm, labelled=90, template="rubric")
    engine = run(problem, 1)
    scores = engine.inner["scores"]
    failed = [data.queries[r.query].startswith("1") for r in problem.labelled]
    assert [s is None for s in scores] == failed
    assert 0 < sum(failed) < len(scores) / 2
    known = [(s, r.outcome) for s, r in zip(scores, problem.labelled, strict=True) if s is not None]
    expected = 1 - roc_auc_score([y for _, y in known], [s for s, _ in known])
    assert 1 - float(problem.evaluate(problem.template, engine.inner, 0).metrics["judge/auroc"]) \
        == pytest.approx(expected)  # fmt: skip


def test_a_template_that_leaves_rows_without_a_score_is_not_chosen_on_the_rest(
    data: Solutions,
) -> None:
    refuses = Paid(lambda text: "no" if text.count("goes on") else "Score: 9.0")
    problem = make(data, judge=refuses)
    engine = run(problem, 1)
    assert engine.inner["tried"][0]["loss"] == float("inf")
    assert problem.metrics(problem.template, engine.inner)["coverage"] < 0.9


def test_a_judge_that_is_not_understood_stops_at_the_first_step(data: Solutions) -> None:
    judge = Paid(lambda text: f"{text[-40:]}\nI give it eight.")
    with pytest.raises(NotUnderstood) as stop:
        run(make(data, judge=judge), 5)
    words = str(stop.value)
    assert "judge: 60 of 60 replies are not understood" in words
    assert "x xxxx xx xxxxx." in words
    assert "`**Score: 8**`" in words
    assert "A: " not in words, "nothing that a reply says is shown"
    assert len(judge.asked) <= 60


def test_a_reply_that_was_cut_has_no_score(data: Solutions) -> None:
    judge = Paid(lambda text: "Score: 1")
    judge.finish = "length"
    with pytest.raises(NotUnderstood, match=r"(?s)60 are cut at max_tokens=512.*raise max_tokens"):
        run(make(data, judge=judge), 1)


def test_a_template_of_the_writer_that_gets_no_score_does_not_stop(data: Solutions) -> None:
    def write(role: str, messages: Sequence[Message], key: int) -> str:
        return "<template>\nSay it in words.\n</template>"

    judge = Paid(lambda text: "eight" if text.startswith("Say it") else by_length(text))
    engine = run(make(data, judge=judge, writer=SimulatedLM(write)), 2)
    assert [np.isfinite(trial["loss"]) for trial in engine.inner["tried"]] == [True, False]


def test_the_writer_is_shown_what_the_best_template_misjudges_most(data: Solutions) -> None:
    heard: list[str] = []

    def write(role: str, messages: Sequence[Message], key: int) -> str:
        heard.append(messages[-1]["content"])
        return f"<template>\n{FIRST._replace(strictness=0.5).render()}\n</template>"

    problem = make(data, writer=SimulatedLM(write), examples=2)
    scores = problem.score(problem.template, problem.labelled)
    trial = Trial(problem.template, 0.3, 1, scores)
    assert parse(problem.propose([trial], 0)).strictness == 0.5
    shown = shown_examples(heard[0])
    assert [e.outcome for e in shown] == [True, True, False, False]
    worst = min(s for s, r in zip(scores, problem.labelled, strict=True) if r.outcome and s)
    assert shown[0].score == worst
    by_text = {f"Objective: {data.queries[r.query]}\n\nResponse:\n{r.response}": r
               for r in problem.labelled}  # fmt: skip
    assert [by_text[e.response].outcome for e in shown] == [e.outcome for e in shown]
    blind = make(data, writer=SimulatedLM(write))
    blind.propose([trial], 0)
    assert shown_examples(heard[-1]) == []


def test_the_simulated_writer_moves_weights_towards_misjudged_successes(data: Solutions) -> None:
    moved = []
    for examples in (0, 20):
        problem = make(data, examples=examples)
        trial = Trial(problem.template, 0.3, 1, problem.score(problem.template, problem.labelled))
        drawn = [parse(problem.propose([trial], key)) for key in range(60)]
        moved.append(
            np.mean([r.weights["arithmetic"] for r in drawn]) - FIRST.weights["arithmetic"]
        )
    assert abs(moved[0]) < 0.1
    assert moved[1] > moved[0] + 0.05


def test_a_template_that_was_tried_is_not_paid_for_again(data: Solutions) -> None:
    problem = make(data)
    trials = [Trial(problem.template, 0.3)]
    assert problem.screen(problem.template, trials) == float("inf")
    assert problem.screen(Rubric({"steps": 1.0}).render(), trials) == 0


def test_a_template_of_ones_own_needs_a_footer_and_a_writer_that_reads_it(data: Solutions) -> None:
    text = f"Is it right?\n{FOOTER}"
    with pytest.raises(ValueError, match="Score: <number>"):
        make(data, template="Is it right?")
    with pytest.raises(ValueError, match=r"rewrites rubrics only.*problem\.writer"):
        make(data, template=text)
    writer = Paid(lambda asked: f"<template>\nIs it short?\n{FOOTER}\n</template>")
    problem = make(data, template=text, writer=writer, judge=Paid(by_length))
    assert run(problem, 2).inner["tried"][1]["template"].startswith("Is it short?")
    silent = make(data, template=text, writer=Paid(lambda asked: "no"), judge=Paid(by_length))
    assert silent.propose([Trial(text, 0.3)], 0) == text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"objective": "nll"}, "objective to be one of mae"),
        ({"labelled": 1}, "labelled >= 2"),
        ({"templates_in_context": 0}, "templates_in_context >= 1"),
        ({"examples": -1}, "examples >= 0"),
        ({"held_out": 0}, "held_out >= 1"),
        ({"coverage": 0.0}, "0 < coverage <= 1"),
        ({"training": 1.0}, "0 < share < 1"),
    ],
)
def test_arguments_out_of_range_are_named(
    data: Solutions, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make(data, **arguments)


def test_examples_of_one_outcome_are_refused() -> None:
    rows = tuple(Solution(i, str(i), True) for i in range(8))
    with pytest.raises(ValueError, match="4 labelled examples have one outcome only"):
        JudgeCalibration(Solutions(tuple("abcdefgh"), rows), labelled=4)


@pytest.mark.data
@pytest.mark.slow
def test_on_gsm8k_a_search_turns_the_first_template_round() -> None:
    path = Path(os.environ.get("METAOPT_DATA", "")) / "gsm8k"
    if not (path / "example_model_solutions.jsonl").is_file():
        pytest.skip(f"{path} is missing")
    problem = JudgeCalibration(solutions(), objective="brier", held_out=300)
    engine = run(problem, 25)
    first = problem.metrics(problem.template, engine.inner)
    best = problem.metrics(engine.optimizer.solution, engine.inner)
    assert first["auroc"] < 0.47
    assert best["auroc"] > first["auroc"] + 0.1
    assert best["brier"] < first["brier"] - 0.05
    assert first["random_success"] < 0.45 < 0.6 < first["oracle_success"]
