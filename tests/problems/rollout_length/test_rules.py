"""Actions on lengths, and the rules that act without learning."""

import math
from fractions import Fraction

import pytest
import torch
from acting import Climb, observation

from metaopt import Engine, Feedback
from metaopt.engine.random import generator
from metaopt.estimators import Score
from metaopt.problems.rollout_length.policies import (
    Absolute,
    ErrorFeedback,
    Ladder,
    Observation,
    RandomWalk,
    Rule,
)

UP, DOWN, NOOP = 0, 1, 2
LADDER = Ladder()
RUNGS = [0, 1, 2, 3, 5, 8, 12, 18, 27, 32]


def moved(action, lengths, ladder=LADDER):
    lengths = torch.tensor(lengths)
    result = ladder(torch.full_like(lengths, action), lengths)
    assert result.dtype == torch.long
    return result.tolist()


def test_up_climbs_the_rungs_of_the_paper_and_stays_under_the_cap():
    assert moved(UP, RUNGS) == [*RUNGS[1:], 32]
    exact = [min(32, max(1, -(-3 * k // 2))) for k in range(33)]
    assert moved(UP, list(range(33))) == exact


@pytest.mark.parametrize("up", ["1.0000000001", "1.1", "1.2", "1.4", "2"])
def test_up_is_not_off_by_a_rounding(up):
    exact = [max(1, math.ceil(Fraction(up) * k)) for k in range(200)]
    assert moved(UP, list(range(200)), Ladder(cap=500, up=float(up))) == exact


def test_down_halves_and_rounds_down():
    assert moved(DOWN, RUNGS) == [0, 0, 1, 1, 2, 4, 6, 9, 13, 16]
    assert moved(DOWN, list(range(33))) == [k // 2 for k in range(33)]


def test_noop_stays():
    assert moved(NOOP, RUNGS) == RUNGS


def test_each_run_takes_its_own_action():
    result = Ladder()(torch.tensor([UP, DOWN, NOOP]), torch.tensor([8, 8, 8]))
    assert result.tolist() == [12, 4, 8]


def test_larger_steps_and_another_cap():
    assert moved(UP, [0, 1, 2, 4, 8, 16], Ladder(cap=20, up=2.0)) == [1, 2, 4, 8, 16, 20]
    assert moved(DOWN, [5, 1, 0], Ladder(down=0.0)) == [0, 0, 0]


def test_absolute_actions_forget_the_length():
    actions = Absolute([0, 2, 8, 32])
    assert actions.count == 4
    result = actions(torch.tensor([3, 0, 2, 1]), torch.tensor([5, 5, 5, 5]))
    assert result.tolist() == [32, 0, 8, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ladder(cap=0),
        lambda: Ladder(up=1.0),
        lambda: Ladder(down=1.0),
        lambda: Ladder(down=-0.5),
        lambda: Absolute([]),
        lambda: Absolute([1, -2]),
        lambda: Absolute([1, 2.5]),
        lambda: Absolute([1, 1]),
        lambda: Absolute("12"),
        lambda: ErrorFeedback(lengths=[4, 2]),
        lambda: ErrorFeedback(bounds=[0.3, 0.1]),
        lambda: ErrorFeedback(bounds=[0.0, 0.1]),
        lambda: ErrorFeedback(lengths=[16, 8, -2]),
        lambda: ErrorFeedback(feature=-1),
    ],
)
def test_wrong_settings_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()


def observed(runs, **changes):
    return Observation(**observation(runs, **changes))


def test_random_walk_takes_every_action_alike_and_hovers_near_zero():
    walk, runs = RandomWalk(Ladder()), 9000
    first = walk(observed(runs, length=torch.full((runs,), 8)), generator(0))
    counts = torch.bincount(first, minlength=13)[[12, 4, 8]]
    assert counts.sum() == runs
    assert (counts / runs).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    lengths = first
    for k in range(30):
        lengths = walk(observed(runs, length=lengths), generator(1 + k))
    assert lengths.median() <= 2
    assert lengths.max() <= 32


def test_random_walk_over_absolute_actions():
    result = RandomWalk(Absolute([0, 2, 8]))(observed(3000), generator(0))
    assert (torch.bincount(result)[[0, 2, 8]] / 3000).tolist() == pytest.approx(
        [1 / 3] * 3, abs=0.04
    )


def test_error_feedback_plans_longer_the_better_the_model():
    errors = torch.tensor([0.0, 0.09, -0.09, 0.1, -0.29, 0.3, 2.0, 0.0])
    state = torch.zeros(8, 5)
    state[:, 4] = errors
    state[:, 3] = 5 * torch.ones(8)
    score = torch.tensor([0.0] * 6 + [160.0, 160.1])
    rule = ErrorFeedback(enough=160.0)
    result = rule(observed(8, state=state, score=score), generator(0))
    assert result.tolist() == [16, 16, 16, 8, 8, 2, 2, 0]
    ever = ErrorFeedback(lengths=[5, 1], bounds=[1.0], feature=3)
    assert ever(observed(8, state=state, score=score), generator(0)).tolist() == [1] * 8


def test_error_feedback_says_which_features_there_are():
    with pytest.raises(ValueError, match="feature 4 of observations that have 2"):
        ErrorFeedback()(observed(3, features=2), generator(0))


def test_a_rule_starts_each_episode_with_the_first_lengths():
    asked = []

    def rule(observed, generator):
        asked.append((observed.step, observed.length.tolist()))
        return observed.length + 1

    optimizer = Rule(rule)
    optimizer.init(torch.tensor([0, 7]))
    result = []
    for step, done in [(0, False), (1, False), (2, True), (0, False), (1, False)]:
        lengths = optimizer.ask(0)
        result.append(lengths.tolist())
        tensors = {"state": torch.zeros(2, 1), "length": lengths, "step": step, "done": done}
        optimizer.tell(Feedback(0.0, observation=observation(2, **tensors)))
    assert result == [[0, 7], [1, 8], [2, 9], [0, 7], [1, 8]]
    assert asked == [(0, [0, 7]), (1, [1, 8]), (0, [0, 7])]


def test_a_rule_through_the_engine_is_seeded():
    def lengths(seed):
        walk = Rule(RandomWalk(Absolute([0, 1, 2])))
        engine = Engine(Climb(16), Score(1), walk, outer_steps=5, seed=seed)
        return torch.stack([f.observation["length"].clone() for _, f in engine])

    assert torch.equal(lengths(0), lengths(0))
    assert not torch.equal(lengths(0), lengths(1))
