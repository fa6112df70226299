"""Both levels: counts by hand, invariances, F, proposals, resume, and models that do not answer."""

import itertools

import pytest
import torch
from problems.metric_induction.small_sets import (
    INSTANCES,
    PLAN,
    TONE,
    measured,
    measuring,
    problem,
)

from metaopt import Engine, Score
from metaopt.llm import Client, NotUnderstood, SimulatedLM
from metaopt.metrics.traits import TraitCounts
from metaopt.optimizers import Search
from metaopt.problems.metric_induction import FeedbackWorld, MetricInduction
from metaopt.problems.metric_induction.metric_set import Metric, parse, render


def test_two_trajectories_and_two_metrics_by_hand():
    """Run one has the trait tone +; run two tone + and plan -, of which "rude" is neither."""
    result = measured([TONE, PLAN])
    assert result.counts == TraitCounts(3, 1, 3, 1)
    assert result.matched == [[0, -1], [-1]]
    assert result.unmatched == [(1, 2), (1, 1)]
    assert result.understood == 1


def test_a_permutation_of_the_metrics_changes_nothing():
    task = problem(first="planted", error=0.4)
    metrics = parse(task.init_outer(None))
    results = [
        task.measure(render(order), "held_out")
        for order in (metrics, metrics[::-1], metrics[3:] + metrics[:3])
    ]
    assert len({r.counts for r in results}) == 1
    by_name = [
        {m.name: u for m, u in zip(order, r.unmatched, strict=True)}
        for order, r in zip((metrics, metrics[::-1]), results, strict=False)
    ]
    assert by_name[0] == by_name[1]


def test_a_duplicate_lowers_the_value_by_redundancy_alone():
    task = problem(first="planted", error=0.0)
    metrics = parse(task.init_outer(None))
    twice = [*metrics, Metric("a copy", metrics[0].definition)]
    single, double = (task.measure(render(m), "held_out").counts for m in (metrics, twice))
    assert (double.aspects, double.matched_aspects) == (single.aspects, single.matched_aspects)
    assert double.traits > single.traits
    assert double.matched_traits == single.matched_traits
    assert double.coverage == single.coverage
    assert double.redundancy > single.redundancy


def test_a_match_of_another_sign_is_none():
    """The grounder of these tests matches whatever the sign is, as a language model may."""
    result = measured([TONE])
    assert result.matched == [[0, -1], [-1]]  # "rude" is matched to tone +


def test_where_no_sign_agrees_nobody_is_asked():
    asked = []

    def grounder(role, messages, key):
        asked.append(messages)
        return "1: 1\n2: none"

    measured([TONE], grounder=grounder)
    assert len(asked) == 1  # about run one: run two has tone + and an aspect -


def run(task, steps, **search):
    return Engine(task, Score(), Search(task.propose, **search), outer_steps=steps, seed=0)


def test_the_value_is_coverage_less_lambda_redundancy_of_held_out_feedback():
    for weight, part in itertools.product((0.0, 0.5), ("held_out", "induction")):
        task = problem(first="planted", redundancy_weight=weight, measured_on=part)
        engine = run(task, 1)
        ((_, feedback),) = engine
        counts = task.measure(engine.optimizer.solution, part).counts
        assert feedback.value == weight * counts.redundancy - counts.coverage
        other = {"held_out", "induction"} - {part}
        assert f"{part}/coverage" in feedback.metrics
        assert ("induction/coverage" in feedback.metrics) or other == {"induction"}


def test_a_search_leaves_the_empty_set_which_is_worth_least():
    task = problem(error=0.0)
    values = [feedback.value for _, feedback in run(task, 3)]
    assert values[0] == task.redundancy_weight
    assert min(values[1:]) < values[0]


def test_without_errors_a_metric_for_each_aspect_covers_all():
    task = problem(first="aspects", error=0.0)
    counts = task.measure(task.init_outer(None), "induction").counts
    assert counts.coverage == 1
    assert counts.aspects > 0


def test_k_means_makes_a_metric_of_each_cluster():
    clusters = parse(problem(first="k_means", clusters=3).init_outer(None))
    assert len(clusters) == 3
    assert all(metric.examples for metric in clusters)


def test_planted_metrics_are_found_and_a_detail_is_not():
    task = problem(first="planted", trajectories=60)
    found = task.metrics(task.init_outer(None), None)
    assert (found["precision"], found["recall"], found["metrics"]) == (1, 1, 8)
    other = task.metrics(render([Metric("font", "How it does on the font.")]), None)
    assert (other["precision"], other["recall"]) == (0, 0)
    nothing = task.metrics("", None)
    assert (nothing["precision"], nothing["recall"], nothing["coverage"]) == (0, 0, 0)


def test_the_releases_rule_ends_where_coverage_falls():
    task = problem(
        30, 0.4, measured_on="induction", redundancy_weight=0.0, shows_unmatched=False,
        until_coverage_falls=True, most=1000,
    )  # fmt: skip
    engine = run(task, 60, accept="always")
    coverage = [feedback.metrics["induction/coverage"] for _, feedback in engine]
    assert len(coverage) < 60
    assert coverage[-1] < coverage[-2]
    assert all(a <= b for a, b in itertools.pairwise(coverage[:-1]))
    assert "coverage fell from" in engine.stopped
    sizes = [entry["set/metrics"] for entry in engine.inner["history"]]
    assert all(0 < b - a <= 4 for a, b in itertools.pairwise(sizes))  # added, never dropped


def test_the_releases_rule_ends_where_nothing_is_left():
    task = problem(measured_on="induction", redundancy_weight=0.0, shows_unmatched=False,
                   until_coverage_falls=True, most=1000, error=0.0)  # fmt: skip
    engine = run(task, 60, accept="always")
    assert list(engine)[-1][1].metrics["induction/coverage"] == 1
    assert engine.stopped == "every aspect is covered"


def test_a_run_goes_on_from_a_checkpoint_to_the_bit(tmp_path):
    whole = run(problem(), 5)
    last = [feedback.value for _, feedback in whole]
    half = run(problem(), 2)
    list(half)
    path = tmp_path / "state"
    torch.save(half.state_dict(), path)
    rest = run(problem(), 5)
    rest.load_state_dict(torch.load(path, weights_only=True))
    assert [feedback.value for _, feedback in rest] == last[2:]
    assert rest.optimizer.solution == whole.optimizer.solution
    assert rest.inner["history"] == whole.inner["history"]


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("judge", "last line 'Rating"),
        ("grounder", "a line '<aspect>"),
        ("extractor", "'good: ...'"),
    ],
)
def test_a_model_that_does_not_answer_the_question_is_said_so(role, words):
    dumb = {role: SimulatedLM(lambda role, messages, key: "I am a language model 42.")}
    task = problem(roles=dumb, first="planted")
    with pytest.raises(NotUnderstood, match=rf"{role}: 0 of \d+ replies .*{words}") as caught:
        list(run(task, 1))
    assert "x xx x xxxxxxxx xxxxx 99" in str(caught.value)


def test_a_rewriter_that_writes_no_set_keeps_the_parents():
    dumb = {"rewriter": SimulatedLM(lambda role, messages, key: "No.")}
    engine = run(problem(roles=dumb, first="planted"), 2)
    assert len({entry["set"] for _ in engine for entry in engine.inner["history"]}) == 1


def test_a_set_that_is_not_understood_later_is_worth_nothing():
    def judge(role, messages, key):
        return "Rating: +1" if "How the agent" in messages[-1]["content"] else "Hm."

    odd = SimulatedLM(lambda role, m, k: '<metric name="odd">\nWhat?\n</metric>\nDrop: planning')
    task = problem(roles={"judge": SimulatedLM(judge), "rewriter": odd}, most=2,
                   first='<metric name="planning">\nHow the agent plans.\n</metric>')  # fmt: skip
    values = [feedback.value for _, feedback in run(task, 2)]
    assert values[0] < float("inf")
    assert values[1] == float("inf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"first": "best"},
            "first='best' must be one of none, aspects, k_means, planted, or a text",
        ),
        ({"first": '<metric name="a">'}, "is no set of metrics: each <metric"),
        ({"redundancy_weight": -1.0}, "redundancy_weight >= 0; got redundancy_weight=-1.0"),
        ({"measured_on": "test"}, "measured_on"),
        ({"most": 0}, "most >= 1; got most=0"),
        ({"induction": 0.9, "held_out": 0.1}, "leave 11, 1, 0 for induction, selection and test"),
        ({"roles": {"jugde": SimulatedLM(str)}}, "roles names 'jugde'; roles are extractor"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        problem(**options)


def test_a_budget_that_cannot_last_is_refused():
    def client(lms):
        return Client(lms, budget={"extractor": {"lm_calls": 3}})

    with pytest.raises(ValueError, match="extractor"):
        MetricInduction(FeedbackWorld(12), client)


def with_40_calls():
    def client(lms):
        return Client(lms, limits={"lm_calls": 40})

    task = MetricInduction(FeedbackWorld(12), client)
    engine = run(task, 9)
    return task, engine, [feedback.value for _, feedback in engine]


def test_a_spent_budget_ends_the_run():
    task, engine, values = with_40_calls()
    assert len(values) < 9
    assert "lm_calls" in engine.stopped
    assert values[-1] == float("inf")
    assert engine.optimizer.solution == ""  # what was measured in full
    left = task.metrics(engine.optimizer.solution, engine.inner)
    assert left == {"metrics": 0, "precision": 0, "recall": 0}  # which take no answers


@pytest.mark.slow
def test_a_report_says_that_the_test_part_could_not_be_measured(tmp_path):
    task, engine, _ = with_40_calls()
    summary = task.report.deliver("", engine.inner, [], tmp_path)
    assert "sets tried" in summary
    assert "could not be measured" in (tmp_path / "report.md").read_text()


def test_ratings_do_not_depend_on_the_other_metrics():
    first, both = (measuring() for _ in range(2))
    aspects = [instance.aspects for instance in INSTANCES]
    first.measure([TONE], INSTANCES, aspects)
    before = sum(first.client.sent.values())
    first.measure([TONE, PLAN], INSTANCES, aspects)
    both.measure([TONE, PLAN], INSTANCES, aspects)
    judged = first.client.spent("judge")["lm_calls"]
    assert judged == both.client.spent("judge")["lm_calls"] == 4
    assert before == 3  # two ratings and a grounding
