"""What the coder is shown reads back as it was written; where its replies hold a reward."""

import math

import pytest

from metaopt.problems.reward_design.feedback_text import (
    PROCESS,
    SUM,
    Episode,
    preference_feedback,
    process_feedback,
    read_sections,
    trajectory_feedback,
)
from metaopt.problems.reward_design.prompts import (
    Assignment,
    asking,
    read_answer,
    shown_names,
    shown_reward,
    shown_success,
)

CAR = Assignment("Reach the goal.", {"p": "position: of the car", "v": "velocity", "p2": "later"})
CURVE = {
    "steps": [800, 1600],
    "success": [0.0, 0.25],
    "length": [200.0, 187.5],
    "return": [-1, 3.25],
}
WON = Episode(True, 120, 7.5, {"step": [0, 119], "p": [-0.5, 0.512], "v": [0.0, 0.0401]})
LOST = Episode(False, 200, 9.0, {"step": [0, 199], "p": [-0.5, -0.4], "v": [0.0, -0.01]})


def test_a_question_says_names_reward_and_success():
    (message,) = asking(CAR, "speed := 2 * abs(v)\ncost := -0.5", 0.25, "More is known (a): no.")
    text = message["content"]
    assert shown_names(text) == ["p", "v", "p2"]
    assert shown_reward(text) == "speed := 2 * abs(v)\ncost := -0.5"
    assert shown_success(text) == 0.25
    assert "position: of the car" in text
    assert "More is known (a): no." in text


@pytest.mark.parametrize("reward", [None, "speed := 2 * abs(v)"])
def test_a_question_without_a_trained_reward_shows_no_success(reward):
    text = asking(CAR, reward)[0]["content"]
    assert shown_reward(text) == reward
    assert shown_success(text) is None
    assert read_sections(text) == []


def test_process_feedback_reads_back():
    text = process_feedback(CURVE, {"speed": [1.0, 41.0]})
    (section,) = read_sections(asking(CAR, "speed := 1 * v", 0.25, text)[0]["content"])
    assert section.title == PROCESS
    assert section.table == {**CURVE, SUM + "speed": [1, 41]}


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        (trajectory_feedback(LOST, WON), [False, True]),
        (preference_feedback(0.25, 0.8, WON, LOST, "step"), [True, False]),
    ],
)
def test_episodes_read_back_with_their_outcomes(text, outcomes):
    sections = read_sections(text)
    assert [section.success for section in sections] == outcomes
    for section in sections:
        assert section.table == (WON if section.success else LOST).table


def test_the_preference_says_what_was_asked_for():
    text = preference_feedback(0.25, 0.8, WON, LOST, "episode")
    assert "25 % of the comparisons" in text
    assert "80 % are needed" in text
    assert "return 7.5, 120 steps" in text


def test_what_is_not_finite_reads_back():
    (section,) = read_sections(process_feedback({"success": [math.nan, -math.inf, 1e-7]}, {}))
    nan, low, small = section.table["success"]
    assert math.isnan(nan)
    assert (low, small) == (-math.inf, 1e-7)


@pytest.mark.parametrize(
    ("reply", "reward", "python"),
    [
        ("```reward\na := 1 * p\nb := -2\n```", "a := 1 * p\nb := -2", False),
        ("First\n```\nx := 1 * v\n```\nbetter\n``` reward \n1 * p\n```\nbye", "1 * p", False),
        ("I write\n  a := 2 * p\n+0.5 * abs(v)\nand so on", "  a := 2 * p\n+0.5 * abs(v)", False),
        ("```python\nreturn p\n```", "return p", True),
        ("```\ndef reward(p):\n    return p\n```", "def reward(p):\n    return p", True),
        ("Here: \ndef reward(p):\n    return p", "def reward(p):\n    return p", True),
        ("```reward\na := 1 * p", "a := 1 * p", False),
    ],
)  # fmt: skip
def test_a_reply_holds_its_last_block_or_its_terms(reply, reward, python):
    answer = read_answer(reply)
    assert answer is not None
    assert (answer.text, answer.python) == (reward, python)


@pytest.mark.parametrize("reply", ["", "I cannot.", "```reward\n\n```", "Use the velocity."])
def test_a_reply_without_terms_holds_none(reply):
    assert read_answer(reply) is None
