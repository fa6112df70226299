"""What models write is read as it is meant, or not at all."""

import pytest

from metaopt.problems.metric_induction import prompts
from metaopt.problems.metric_induction.metric_set import Metric, parse, render
from metaopt.problems.metric_induction.prompts import Aspect

PLAN, TONE = Metric("plan", "Whether it plans."), Metric("tone", "How it speaks.")


@pytest.mark.parametrize(
    ("reply", "aspects"),
    [
        ("good: it asked\nbad: it was slow", [("it asked", 1), ("it was slow", -1)]),
        ("1. **Good:** it asked\n2. **Bad:** it was slow", [("it asked", 1), ("it was slow", -1)]),
        ("```\n- GOOD: it asked\n```", [("it asked", 1)]),
        ("Aspects:\n(bad): it was slow\ngood:", [("it was slow", -1)]),
        ("good: it asked\ngood: it asked", [("it asked", 1)]),
        ("There is nothing.\nNone.", []),
        ("no aspects", []),
        ("It asked, which I liked.", None),
        ("", None),
    ],
)
def test_aspects(reply, aspects):
    assert prompts.read_aspects(reply) == aspects


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("It plans.\nRating: +1", 1), ("Rating: -1", -1), ("Rating: 0", 0), ("Rating: 1", 1),
        ("**Rating: -1**", -1), ("Rating: **-1**", -1), ("- Rating: \u22121", -1),
        ("```\nRating: -1.0\n```", -1), ("### Final rating: `+1`.", 1), ("Score = -1", -1),
        ("Rating: +1\nRating: -1", None), ("Rating: 2", None), ("Rating: 10", None),
        ("Rating: good", None), ("Rating: +1\nbecause it plans", None), ("", None),
        ("Rating: +1 or -1", None),
    ],
)  # fmt: skip
def test_ratings(reply, rating):
    assert prompts.read_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "matches"),
    [
        ("1: 2\n2: none", [1, None]), ("Aspect 1: trait 2\nAspect 2 -> 1", [1, 0]),
        ("- **1**: **2**\n- **2**: none of them", [1, None]), ("1 => 1\n2 = 0", [0, None]),
        ("1: 2\n1: 2\n2: null", [1, None]),
        ("1: 2", None), ("1: 3\n2: 1", None), ("1: 1\n1: 2\n2: 1", None), ("1: 1\n3: 1", None),
        ("none", None),
    ],
)  # fmt: skip
def test_matches(reply, matches):
    assert prompts.read_matches(reply, 2, 2) == matches


def test_a_rewrite_adds_drops_and_replaces():
    new = Metric("brevity", "How short it is.")
    reply = f"{render([new])}\nDrop: Tone\n- **Drop:** `nothing of the kind`"
    assert parse(prompts.read_rewrite(reply, [PLAN, TONE], True, 5)) == [PLAN, new]
    assert parse(prompts.read_rewrite(reply, [PLAN, TONE], False, 5)) == [PLAN, TONE, new]
    other = Metric("plan", "Whether it follows a plan.")
    assert parse(prompts.read_rewrite(render([other]), [PLAN, TONE], True, 5)) == [TONE, other]


@pytest.mark.parametrize(
    "reply",
    [
        "I would keep them.", "Drop: nothing", render([PLAN]), "Drop: plan\nDrop: tone",
        '<metric name="new">\nx', render([Metric("a", "x"), Metric("b", "y")]),
    ],
)  # fmt: skip
def test_a_reply_that_makes_no_other_set_makes_none(reply):
    assert prompts.read_rewrite(reply, [PLAN, TONE], True, 3) is None


def test_messages_say_what_a_reader_finds_in_them():
    said = [Aspect("it asked: twice", 1), Aspect("it was slow", -1)]
    (message,) = prompts.grounding(said, [(PLAN, -1), (TONE, 1)])
    assert prompts.shown_aspects(message["content"]) == said
    assert [t.sign for t in prompts.shown_traits(message["content"])] == [-1, 1]
    unmatched = {"plan": (3, 4), "tone": (0, 2)}
    (message,) = prompts.rewriting([PLAN, TONE], said, (7, 9), unmatched, 2, 5)
    text = message["content"]
    assert prompts.shown_uncovered(text) == said
    assert prompts.shown_unmatched(text) == unmatched
    assert prompts.shown_limits(text) == (2, 5)
    assert "2 of the 7 aspects, out of 9" in text
    (message,) = prompts.rewriting([], said, (2, 2), None, 4, 5)
    assert prompts.shown_limits(message["content"]) == (4, None)
    assert prompts.shown_unmatched(message["content"]) is None
    assert "exactly 4" in message["content"]
    assert "Drop" not in message["content"]


def test_a_number_beyond_all_aspects_states_no_match():
    assert prompts.read_matches("9" * 5000 + ": 1\n1: " + "9" * 5000, 1, 1) is None
    assert prompts.read_matches("1 --> 1", 1, 1) == [0]


def test_a_name_in_brackets_can_be_dropped():
    metrics = [Metric("plans (first)", "Whether it plans."), Metric("tone", "How it speaks.")]
    after = prompts.read_rewrite("- **Drop:** plans (first).", metrics, True, 5)
    assert parse(after) == metrics[1:]
