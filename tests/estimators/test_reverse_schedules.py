"""Schedules of a reverse pass against their formula and an exhaustive search."""

from functools import cache
from math import comb

import pytest

from metaopt.estimators.reverse.schedules import Revolve, Segments, forward_steps


def griewank_and_walther(steps, states):
    """Return t(l, s) = r l - C(s + r, r - 1)."""
    r = next(r for r in range(1, steps + 1) if comb(states + r, states) >= steps)
    return r * steps - comb(states + r, r - 1)


@cache
def fewest(steps, states):
    """Return the fewest forward steps with a number of states, by trying every first split."""
    if steps == 1:
        return 0
    if states == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, states - 1) + fewest(m, states) for m in range(1, steps))


@pytest.mark.parametrize("states", range(1, 7))
def test_revolve_takes_the_fewest_forward_steps(states):
    for steps in range(2, 40):
        taken = forward_steps(Revolve(states), range(5, 5 + steps))  # that to the end is one more
        assert taken == fewest(steps, states) + 1


@pytest.mark.parametrize(
    ("steps", "states", "expected"),
    [(100, 8, 246), (1000, 20, 2748), (2000, 20, 5977), (10_000, 20, 37_977), (10_000, 10, 57_625)],
)
def test_revolve_takes_the_forward_steps_of_the_formula(steps, states, expected):
    assert forward_steps(Revolve(states), range(steps)) == expected
    assert expected == griewank_and_walther(steps, states) + 1


@pytest.mark.parametrize("count", [2, 5, 13])
def test_segments_take_each_step_once(count):
    assert forward_steps(Segments(range(7, 20), count), range(7, 20)) == 13


def test_the_whole_graph_takes_no_step_twice():
    assert forward_steps(Segments(range(13), 1), range(13)) == 0


def test_more_states_than_a_schedule_has_room_for_are_used():
    # As after an interruption: what is there was paid for.
    assert Revolve(2).next([0, 3, 6, 9], 11) is None
    assert Segments(range(12), 3).next([0, 3, 6], 11) is None
