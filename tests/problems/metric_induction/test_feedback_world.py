"""The world: its shares, what its readers read in texts, and how often they err."""

import itertools
import re

import numpy as np
import pytest

from metaopt.problems.metric_induction import FeedbackWorld, prompts
from metaopt.problems.metric_induction.metric_set import Metric, parse
from metaopt.problems.metric_induction.prompts import Aspect
from metaopt.problems.metric_induction.world.readers import (
    Extractor,
    Grounder,
    Judge,
    Rewriter,
    rating,
)
from metaopt.problems.metric_induction.world.vocabulary import (
    BAD,
    BEHAVIOURS,
    DETAILS,
    GOOD,
    WORDS,
    sentences,
    subject_words,
    subjects,
)

WORLD = FeedbackWorld(400, error=0.0)


def ask(reader, messages, key=0):
    return reader("role", messages, key)


def test_every_sentence_is_about_one_subject_and_has_one_sign():
    for subject, (phrases, *_) in BEHAVIOURS.items():
        for phrase, frame in itertools.product(phrases, (*GOOD, *BAD)):
            text = frame.format(phrase)
            assert subjects(text) == {subject}, text
            assert list(sentences(text)) == [(text, 1 if frame in GOOD else -1)]
    for noun in DETAILS:
        assert subject_words(f"I liked the {noun}.") == [noun]
    assert set(WORDS) == set(BEHAVIOURS)


def test_shares_are_those_that_are_promised():
    aspects = [a for i in WORLD.instances for a in _extracted(i.feedback)]
    off_topic = np.mean([WORLD.behaviour(a.text) == -1 for a in aspects])
    assert abs(off_topic - 0.2) < 0.04
    signs = np.array([WORLD.signs(i.trajectory) for i in WORLD.instances])
    assert abs(np.mean(signs != 0) - 0.6) < 0.04
    assert abs(np.mean(signs)) < 0.06


def _extracted(feedback):
    return prompts.read_aspects(ask(Extractor(0.0), prompts.extracting(feedback)))


def test_feedback_praises_what_was_done_well():
    """By the planted signs, not by the readers."""
    for instance in WORLD.instances[:40]:
        signs = WORLD.signs(instance.trajectory)
        for aspect in _extracted(instance.feedback):
            behaviour = WORLD.behaviour(aspect.text)
            assert behaviour == -1 or aspect.sign == signs[behaviour]


def test_a_judge_reads_the_metric_and_the_trajectory():
    trajectory = (
        "Task 1: x\n1. asks which reading of the request is meant.\n2. snaps at the caller."
    )
    assert rating("its questions", trajectory) == 1
    assert rating("the polite tone", trajectory) == -1
    assert rating("the font", trajectory) == 0
    assert rating("questions and the polite tone", trajectory) == 0  # they balance
    assert rating("questions", trajectory.replace("asks", "guesses")) == -1
    asked = prompts.judging(Metric("tone", "How friendly it sounds."), trajectory)
    assert prompts.read_rating(ask(Judge(0.0), asked)) == -1


def test_errors_come_at_the_rate_that_is_set():
    trajectory = "Task 1: x\n1. thanks the caller."
    asked = prompts.judging(Metric("tone", "How friendly it sounds."), trajectory)
    judge = Judge(0.3)
    replies = [prompts.read_rating(ask(judge, asked, key)) for key in range(1000)]
    assert abs(np.mean([reply != 1 for reply in replies]) - 0.3) < 0.06
    assert {*replies} == {-1, 0, 1}
    aspects = [Aspect("The polite tone impressed me.", 1)]
    traits = [(Metric("tone", "How friendly it sounds."), 1), (Metric("font", "The font."), 1)]
    question = prompts.grounding(aspects, traits)
    grounder = Grounder(0.3)
    matches = [prompts.read_matches(ask(grounder, question, k), 1, 2) for k in range(1000)]
    assert abs(np.mean([m != [0] for m in matches]) - 0.2) < 0.05  # a third of the errors is right


def test_a_grounder_matches_subjects_of_one_sign():
    traits = [(Metric("a", "The plan."), -1), (Metric("b", "The outline."), 1)]
    aspects = [Aspect("I liked the plan it follows.", 1), Aspect("I liked the font.", 1)]
    reply = ask(Grounder(0.0), prompts.grounding(aspects, traits))
    assert prompts.read_matches(reply, 2, 2) == [1, None]


def test_a_rewriter_writes_the_largest_groups_and_drops_what_nobody_speaks_of():
    said = [*["the plan it follows"] * 2, *["the outline of its steps"] * 2, "the font", "the icon"]
    aspects = [Aspect(f"I liked {text}.", 1) for text in said]
    metrics = [Metric("header", "The header."), Metric("tone", "The polite tone.")]
    asked = prompts.rewriting(metrics, aspects, (6, 9), {"header": (9, 10), "tone": (7, 10)}, 1, 5)
    reply = ask(Rewriter(0.0), asked)
    after = parse(prompts.read_rewrite(reply, metrics, True, 5))
    assert [m.name for m in after] == ["tone", "plan and outline"]
    assert subjects(after[1].definition) == {"planning"}
    mixed = ask(Rewriter(1.0), asked)
    assert len(subjects(parse(mixed)[0].definition)) == 2


def test_a_rewriter_makes_room():
    metrics = [Metric("header", "The header."), Metric("tone", "The polite tone.")]
    aspects = [Aspect("I liked the font.", 1)]
    asked = prompts.rewriting(metrics, aspects, (1, 9), {"header": (2, 10), "tone": (1, 10)}, 1, 2)
    after = parse(prompts.read_rewrite(ask(Rewriter(0.0), asked), metrics, True, 2))
    assert [m.name for m in after] == ["tone", "font"]


def test_readers_know_nothing_of_what_is_planted():
    """Where a detail is spoken of as often as a behaviour, it becomes a metric all the same."""
    aspects = [Aspect("I liked the font.", 1)] * 3 + [Aspect("I liked the plan it follows.", 1)]
    reply = ask(Rewriter(0.0), prompts.rewriting([], aspects, (4, 4), None, 1, 9))
    assert re.search('name="font"', reply)


def test_worlds_differ_by_seed_and_not_by_error():
    same, other = FeedbackWorld(9, error=0.5), FeedbackWorld(9, seed=1)
    assert same.instances == FeedbackWorld(9, error=0.0).instances
    assert same.instances != other.instances


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trajectories": 2}, "trajectories >= 3; got trajectories=2"),
        ({"error": 1.5}, "error <= 1; got error=1.5"),
        ({"details": 49}, "details <= 48; got details=49"),
        ({"off_topic": 0.5, "details": 2}, "2 details at detail_rate=0.15 are too few"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FeedbackWorld(**options)
