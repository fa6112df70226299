"""Schedules of an episode: their shapes, the step they take from the problem, and files."""

import pytest
import torch
from acting import Climb, T, observation

from metaopt import Engine, Feedback
from metaopt.estimators import Score
from metaopt.optimizers import Constant, Linear, Schedule, recorded
from metaopt.testing import OptimizerContract


def episode(schedule, decisions, batches=1, runs=2):
    """Return the first run's lengths at each decision of the last of some episodes."""
    schedule.init(torch.zeros(runs, dtype=torch.long))
    for _ in range(batches):
        lengths = []
        for step in range(decisions + 1):
            lengths.append(schedule.ask(step))
            changes = {"step": step, "steps": decisions, "done": step == decisions}
            schedule.tell(Feedback(0.0, observation=observation(runs, **changes)))
    assert all(k.dtype == torch.long for k in lengths)
    assert all(k.shape == (runs,) for k in lengths)
    return [k[0].item() for k in lengths[1:]]


def linear(*points, **settings):
    return Schedule(Linear(points, **{"integer": True, **settings}), relative=True)


def test_linear_schedules_of_the_paper():
    decreasing, increasing = linear((0, 32), (1, 0)), linear((0, 0), (1, 32))
    assert episode(decreasing, 9) == [32, 28, 24, 20, 16, 12, 8, 4, 0]
    assert episode(increasing, 9) == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    both = linear((0, 0), (0.5, 32), (1, 0))
    assert episode(both, 9) == [0, 8, 16, 24, 32, 24, 16, 8, 0]
    for decisions in (10, 12, 15):
        asked = episode(both, decisions)
        assert asked == asked[::-1]
        assert asked[0] == 0
        # With an even number of decisions the peak lies between two of them.
        peak = 32 if decisions % 2 else 32 * (1 - 1 / (decisions - 1))
        assert max(asked) == round(peak)
    assert episode(linear((0, 32), (1, 0)), 1) == [32]


def test_constant_may_differ_between_runs():
    assert episode(Schedule(Constant(16)), 5) == [16] * 5
    schedule = Schedule(Constant([0, 4, 16]))
    schedule.init(torch.zeros(3, dtype=torch.long))
    assert schedule.ask(0).tolist() == [0, 4, 16]


def truncated_linear(epoch, first, last, low, high):
    """The rule as published: clip the fraction, interpolate, cut to a whole number."""
    if epoch <= first:
        return int(low)
    return int(min((epoch - first) / (last - first), 1) * (high - low) + low)


@pytest.mark.parametrize("schedule", [(20, 150, 1, 15), (20, 100, 1, 25), (20, 300, 1, 25)])
def test_floored_line_is_the_truncated_linear_schedule(schedule):
    first, last, low, high = schedule
    line = Linear([[first, low], [last, high]], floor=True)
    asked = [line(epoch) for epoch in range(last + 20)]
    assert asked == [truncated_linear(epoch, *schedule) for epoch in range(last + 20)]
    assert asked.index(high) == last, "the largest length comes only with the last epoch"
    assert Linear([[first, low], [last, high]], integer=True)(last - 1) == high


def test_the_step_is_what_the_problem_says():
    schedule = Schedule([5, 6, 7, 8].__getitem__)
    schedule.init(torch.zeros(1, dtype=torch.long))
    asked = []
    for step, done in [(0, False), (2, False), (1, False), (3, True), (0, False)]:
        asked.append(schedule.ask(0).item())
        observed = observation(1, step=step, steps=3, done=done)
        schedule.tell(Feedback(0.0, observation=observed))
        assert schedule.solution.item() == asked[-1]
    assert [*asked, schedule.ask(0).item()] == [5, 5, 7, 6, 5, 5]


def test_every_episode_repeats_the_schedule():
    replayed = []
    optimizer = Schedule([0, 1, 2, 1].__getitem__)
    for _, feedback in Engine(Climb(2), Score(1), optimizer, outer_steps=3 * (T + 1)):
        if feedback.observation["step"]:
            replayed.append(feedback.observation["length"].tolist())
    assert replayed == [[k, k] for k in [0, 1, 2, 1]] * 3


def test_recorded_schedules_are_replayed(tmp_path):
    table = tmp_path / "schedule.csv"
    table.write_text("phase,length,sd\n0,0.0,0.1\n1,4.6,2.0\n2,31.5,1\n3,9.4,3\n")
    schedule = Schedule(recorded(table), relative=True)
    assert episode(schedule, 4, batches=2) == [0, 5, 32, 9]
    assert episode(schedule, 7) == [0, 2, 5, 18, 32, 20, 9]
    assert recorded(table, column="sd", integer=False)(0.5) == pytest.approx(1.5)


@pytest.mark.parametrize("decisions", range(2, 60))
def test_a_recorded_schedule_of_the_same_length_is_exact(decisions, tmp_path):
    values = [(7 * k) % 33 for k in range(decisions)]
    path = tmp_path / "schedule.csv"
    path.write_text("\n".join(["length", *map(str, values)]))
    assert episode(Schedule(recorded(str(path)), relative=True), decisions) == values


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("absent.csv", None, "FileNotFoundError"),
        ("schedule.csv", "phase,k\n0,1\n", "column of numbers 'length'.*KeyError"),
        ("schedule.csv", "length\nmany\n", "could not convert"),
        ("schedule.csv", "length\n", "finite numbers"),
        ("schedule.csv", "length\n1\nNaN\n", "finite numbers"),
    ],
)
def test_wrong_files_are_refused(tmp_path, name, content, match):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=match):
        recorded(path)


class TestScheduleOfAnEpisode(OptimizerContract):
    @pytest.fixture(params=[1, 0.5])
    def make(self, request):
        line = Linear([[0, 2], [request.param, 0]], integer=True)
        return lambda: (Climb(2), Score(1), Schedule(line, relative=True))


def test_a_relative_schedule_needs_to_know_the_episode():
    schedule = Schedule(Linear([[0, 0], [1, 32]], integer=True), relative=True)
    schedule.init(0)
    assert schedule.ask(0) == 0
    with pytest.raises(TypeError, match="relative=true needs a problem that observes"):
        schedule.tell(Feedback(0.0))


def test_half_a_step_is_refused_where_lengths_are_whole():
    schedule = Schedule(Linear([[0, 0], [4, 2]]))
    schedule.init(torch.zeros(2, dtype=torch.long))
    assert schedule.ask(0).tolist() == [0, 0]
    schedule.tell(Feedback(0.0))
    with pytest.raises(ValueError, match=r"gives 0\.5 at step 1.*integer=true"):
        schedule.ask(0)
    with pytest.raises(ValueError, match=r"gives 0\.5 at step 0"):
        Schedule(Constant(0.5)).init(torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("function", "largest"),
    [
        (Constant(9), 9), (Constant(None), None), (Constant({"a": 9}), None),
        (Linear([[0, 2], [1, 8.6], [2, 0]]), 8.6), (Linear([[0, 2], [1, 8.6]], integer=True), 9),
    ],
)  # fmt: skip
def test_functions_say_how_far_they_go(function, largest):
    assert function.largest == largest
    for cap in (None, 9, 100):
        Schedule(function, cap=cap).init({"a": torch.tensor([1])})
    if largest is not None:
        with pytest.raises(ValueError, match=f"at most cap=6, .*; got {largest}"):
            Schedule(function, cap=6).init({"a": torch.tensor([1])})
