"""The simulated coder does what its message calls for, and at skill 0 reads none of it."""

import numpy as np
import pytest

from metaopt.problems.reward_design.feedback_text import (
    Episode,
    preference_feedback,
    process_feedback,
    trajectory_feedback,
)
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.prompts import Assignment, asking
from metaopt.problems.reward_design.simulated_coder import MOST_TERMS, SimulatedCoder

NAMES = ["p", "v", "p2", "v2", "action"]
CAR = Assignment("Reach the goal.", dict.fromkeys(NAMES, "a quantity"))
REWARD = "place := 2 * p\nspeed := 1 * abs(v)"
WON = Episode(True, 100, 1.0, {"step": [0, 50, 99], "p": [-0.5, 0, 0.5], "v": [0, -0.05, 0.05]})
LOST = Episode(False, 200, 2.0, {"step": [0, 99, 199], "p": [-0.5, -0.4, -0.5], "v": [0.0] * 3})


def guess(names, draw):
    return f"guess := {draw.integers(1, 100)} * {draw.choice(names)}"


def answer(known="", skill=1.0, reward=REWARD, success=0.0, key=0):
    messages = asking(CAR, reward, success, known)
    text = SimulatedCoder(skill, guess)("coder", messages, key)
    return parse(text.removeprefix("```reward\n").removesuffix("\n```"), NAMES)


def process(success, **sums):
    curve = {"steps": [1, 2, 3, 4], "success": success, "length": [9] * 4, "return": [0] * 4}
    return process_feedback(curve, sums)


def test_at_skill_0_answers_are_random_rewards_whatever_the_message_says():
    messages = [
        "", process([0.0] * 4, place=[0, 1, 2, 3], speed=[1] * 4), trajectory_feedback(WON, LOST)
    ]  # fmt: skip
    for key in range(20):
        draw = np.random.default_rng(key)
        draw.random()  # whether the coder is skilled
        expected = guess(NAMES, draw)
        assert {answer(known, 0.0, key=key).text for known in messages} == {expected}


@pytest.mark.parametrize("sums", [[-200] * 4, [-200, -200, -190, -180]])
def test_a_failing_reward_of_one_term_without_episodes_calls_for_nothing(sums):
    # So the one round of Eureka's 16 rewards, after the own reward, is the same at any skill.
    known = process([0.0] * 4, cost=sums)
    for key in range(20):
        skilled, unskilled = (answer(known, s, "cost := -1", key=key) for s in (0.8, 0.0))
        assert skilled == unskilled


def test_half_of_the_answers_at_skill_one_half_are_random():
    known = process([0.0] * 4, place=[0, 1, 2, 3], speed=[1] * 4)
    guesses = sum(answer(known, 0.5, key=key).terms[0].name == "guess" for key in range(100))
    assert abs(guesses - 50) < 25  # five deviations


def test_a_term_that_rises_while_success_does_not_is_dropped():
    known = process([0.0, 0.05, 0.0, 0.0], place=[0, 1, 2, 3], speed=[2, 2, 1, 1])
    assert answer(known).text == "speed := 1 * abs(v)"


def test_a_term_that_rises_with_success_stays():
    known = process([0.0, 0.2, 0.6, 0.7], place=[0, 1, 2, 3], speed=[2, 2, 1, 1])
    assert answer(known, success=0.7).terms[0].name == "guess"  # nothing is called for


def test_terms_of_very_different_size_get_one_size():
    known = process([0.0, 0.2, 0.6, 0.7], place=[0, 1, 2, 400], speed=[1, 1, 1, 1])
    place, speed = answer(known, success=0.7).terms
    assert place.weight / 2 * 400 == pytest.approx(speed.weight * 1, rel=1e-3)
    assert place.weight * speed.weight == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    "known", [trajectory_feedback(LOST, WON), preference_feedback(0.1, 0.8, WON, LOST, "step")]
)
def test_a_term_is_added_that_is_larger_in_the_success_than_in_the_failure(known):
    added = {answer(known, key=key).terms[2].text for key in range(12)}
    assert len(added) > 1
    for text in added:
        term = parse(text, NAMES).terms[0]
        body = str(term.body)
        assert body in ("p", "abs(p)", "p2 - p", "v2 - v")  # abs(v) is in the reward
        assert (term.weight > 0) == (body != "abs(p)")


def test_two_failures_separate_nothing():
    assert answer(trajectory_feedback(LOST, LOST)).terms[0].name == "guess"


def test_a_reward_that_works_is_varied_in_one_weight():
    for key in range(10):
        changed = answer(success=0.9, key=key)
        ratios = [
            a.weight / b.weight
            for a, b in zip(changed.terms, parse(REWARD, NAMES).terms, strict=True)
        ]
        assert sorted(ratios) in ([0.5, 1.0], [1.0, 2.0])


def test_a_full_reward_loses_its_oldest_term():
    reward = "\n".join(f"t{i} := {i + 1} * action" for i in range(MOST_TERMS))
    changed = answer(trajectory_feedback(WON, LOST), reward=reward)
    assert len(changed.terms) == MOST_TERMS
    assert changed.terms[0].name == "t1"


def test_the_first_reward_is_a_guess():
    assert answer(reward=None, success=None).terms[0].name == "guess"
