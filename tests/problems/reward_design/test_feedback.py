"""Feedback shows the episodes that a reward rates highest and lowest, as they were."""

import pytest
import torch

from metaopt.environments import MountainCar
from metaopt.problems.reward_design.feedback import (
    Kinds,
    rejection_feedback,
    shown,
    training_feedback,
)
from metaopt.problems.reward_design.feedback_text import PROCESS, TRAJECTORY, read_sections
from metaopt.problems.reward_design.gate import Verdict
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.training import Training, Trajectories
from metaopt.problems.reward_design.variables import of

CAR = of(MountainCar())
REWARD = parse("speed := 2 * abs(v2)\ngoal := terminated", CAR.names)


@pytest.fixture(scope="module")
def episodes():
    """Three episodes of 4, 2 and 4 steps: a success at 0.05, one at 0.08, and a failure at 0.01."""
    speed = torch.tensor([0.05, 0.08, 0.01])
    steps = torch.arange(5).clamp(max=4).repeat(3, 1)
    steps[1] = steps[1].clamp(max=2)
    position = -0.5 + speed[:, None] * steps
    observations = torch.stack([position, speed[:, None].expand(3, 5)], -1).half()
    won = torch.tensor([True, True, False])
    return Trajectories(
        observations, torch.full((3, 4), 2, dtype=torch.uint8), torch.tensor([4, 2, 4]), won, won
    )


def test_an_episode_is_shown_before_its_steps(episodes):
    episode = shown(episodes, 1, 1.5, CAR)
    assert (episode.success, episode.length, episode.total) == (True, 2, 1.5)
    assert episode.table["step"] == [0, 1]
    assert episode.table["p"] == pytest.approx([-0.5, -0.42], abs=1e-3)
    assert episode.table["action"] == [2, 2]
    assert set(episode.table) == {"step", "p", "v", "height", "energy", "action"}


def test_a_long_episode_is_shown_at_ten_steps():
    n, steps = 1, 200
    long = Trajectories(
        torch.zeros(n, steps + 1, 2), torch.zeros(n, steps, dtype=torch.uint8),
        torch.tensor([steps]), torch.tensor([False]), torch.tensor([False]),
    )  # fmt: skip
    shown_steps = shown(long, 0, 0.0, CAR).table["step"]
    assert (len(shown_steps), shown_steps[0], shown_steps[-1]) == (10, 0, 199)


@pytest.fixture
def training(episodes):
    curve = {
        "steps": [1.0, 2.0], "success": [0.0, 0.5], "length": [4.0, 3.0], "return": [0.1, 0.2],
        "term speed": [0.1, 0.2], "term goal": [0.0, 0.5],
    }  # fmt: skip
    return Training(REWARD.text, 1, [0.5], curve, episodes)


def test_each_kind_of_feedback_can_be_left_out(training):
    def titles(process, trajectory):
        kinds = Kinds(process=process, trajectory=trajectory)
        return [s.title for s in read_sections(training_feedback(kinds, training, REWARD, CAR))]

    both = [TRAJECTORY.format(which="highest"), TRAJECTORY.format(which="lowest")]
    assert titles(True, False) == [PROCESS]
    assert titles(False, True) == both
    assert titles(True, True) == [PROCESS, *both]
    assert titles(False, False) == []


def test_trajectories_of_highest_and_lowest_return(training):
    kinds = Kinds(process=False)
    highest, lowest = read_sections(training_feedback(kinds, training, REWARD, CAR))
    # 4 * 0.1 + 1, against 2 * 0.16 + 1 and 4 * 0.02
    assert highest.table["v"][0] == pytest.approx(0.05, abs=1e-3)
    assert (highest.success, lowest.success) == (True, False)


def test_a_rejection_shows_the_pair_that_the_reward_confuses(episodes):
    verdict = Verdict(0.5, 0.8, torch.tensor([0.5, 0.2, 0.3]), "step", episodes)
    success, failure = read_sections(rejection_feedback(Kinds(), verdict, CAR))
    assert success.table["v"][0] == pytest.approx(0.08, abs=1e-3)
    assert failure.table["v"][0] == pytest.approx(0.01, abs=1e-3)
    assert rejection_feedback(Kinds(preference=False), verdict, CAR) == ""
