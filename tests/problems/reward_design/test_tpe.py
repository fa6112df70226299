"""Trajectory preference evaluation by hand."""

import numpy as np
import pytest
import torch
from small_trainings import episodes_of, training_of

from metaopt.environments import MountainCar
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.gate import Gate, precision
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.tpe import TrajectoryPreference, rates

WON = torch.tensor([True, True, False, False])


class TestShare:
    @pytest.mark.parametrize(
        ("numbers", "hardest", "pairs"),
        [
            ([4.0, 3.0, 2.0, 1.0], 1.0, 1.0),
            ([4.0, 1.5, 2.0, 1.0], 0.5, 0.75),
            ([1.0, 1.5, 2.0, 0.5], 0.0, 0.5),
            ([2.0, 2.0, 2.0, 1.0], 0.0, 0.5),  # a tie is no preference
            ([1.0, 1.0, 1.0, 1.0], 0.0, 0.0),
        ],
    )
    def test_two_successes_and_two_failures(self, numbers, hardest, pairs):
        for kind in (torch.tensor, np.array):
            for rule, share in (("hardest", hardest), ("pairs", pairs)):
                test = TrajectoryPreference(rule=rule)
                assert test.share(kind(numbers), kind(WON.tolist())) == share

    @pytest.mark.parametrize("rule", ["hardest", "pairs"])
    @pytest.mark.parametrize("won", [[True, True], [False, False], []])
    def test_a_store_of_one_kind_passes(self, rule, won):
        test = TrajectoryPreference(rule=rule)
        assert test.share(torch.zeros(len(won)), torch.tensor(won, dtype=torch.bool)) == 1.0

    @pytest.mark.parametrize("rule", ["hardest", "pairs"])
    def test_a_constant_per_step_and_a_factor_change_nothing(self, rule):
        draw = torch.Generator().manual_seed(0)
        rewards = torch.rand(60, 9, generator=draw, dtype=torch.float64)
        lengths = torch.randint(5, 10, (60,), generator=draw)
        there = torch.arange(9) < lengths.unsqueeze(1)
        won = torch.arange(60) % 3 == 0
        rewards[won] += 0.25
        test = TrajectoryPreference(rule=rule)
        shares = [
            test.share(rates((rewards * scale + shift) * there, lengths, "step"), won)
            for scale, shift in ((1, 0), (1, -3), (0.25, 0), (7, 2))
        ]
        assert len(set(shares)) == 1
        assert 0 < shares[0] < 1

    def test_refuses_what_is_out_of_range(self):
        with pytest.raises(ValueError, match=r"delta <= 1; got delta=1\.5"):
            TrajectoryPreference(delta=1.5)
        with pytest.raises(ValueError, match="rule to be one of hardest, pairs; got rule='both'"):
            TrajectoryPreference(rule="both")
        with pytest.raises(ValueError, match="per to be one of step, episode, null"):
            TrajectoryPreference(per="run")


def test_a_rate_is_the_mean_of_the_steps_made_or_their_sum():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    lengths = torch.tensor([3, 1])
    assert rates(rewards, lengths, "step").tolist() == [2.0, 4.0]
    assert rates(rewards, lengths, "episode").tolist() == [6.0, 4.0]


def test_the_same_reward_in_each_step_is_a_tie_whatever_the_lengths():
    lengths = torch.tensor([110, 131, 200])
    rewards = torch.full((3, 200), 0.1) * (torch.arange(200) < lengths.unsqueeze(1))
    share = TrajectoryPreference().share(
        rates(rewards, lengths, "step"), torch.tensor([True, True, False])
    )
    assert share == 0.0


class TestStore:
    def test_holds_the_latest_episodes_of_each_kind(self):
        trainings = [training_of([True] * 3, 2), training_of([True, False], 1)]
        store = TrajectoryPreference(store=4).latest(trainings, None)
        assert store.success.tolist() == [False, True, True]
        assert store.observations[1:, 0, 0].tolist() == [1, 2]  # of the training of number 2

    def test_what_was_recorded_elsewhere_is_the_oldest(self):
        before = episodes_of([False, True])
        store = TrajectoryPreference(store=4).latest([training_of([True, True])], before)
        assert store.success.tolist() == [False, True, True]
        alone = TrajectoryPreference().latest([], before)
        assert alone.success.tolist() == [False, True]


class TestGate:
    gate = Gate(TrajectoryPreference(), variables.of(MountainCar()), "step")

    def reward(self, text):
        return parse(text, self.gate.variables.names)

    def test_orders_episodes_by_what_a_reward_gives_for_them(self):
        trainings = [training_of([False, True, False, True])]  # position 0 to 3
        better = self.gate(self.reward("-1 * abs(p - 3) + clip(2 - abs(p - 1), 0, 1)"), trainings)
        worse = self.gate(self.reward("-1 * p"), trainings)
        assert worse.share == 0.0
        assert not worse.passed
        assert better.rates.tolist() == [-2.0, -1.0, 0.0, 0.0]
        assert better.share == 0.0  # the hardest failure, at 2, is as good as a success
        assert self.gate(self.reward("p"), trainings).share == 0.5

    def test_has_no_verdict_without_episodes(self):
        assert self.gate(self.reward("p"), []) is None

    def test_sums_favour_long_episodes(self):
        trainings = [training_of([True, False])._replace(
            trajectories=episodes_of([True, False], [1, 4]))]  # fmt: skip
        one = self.reward("1")
        assert self.gate(one, trainings).rates.tolist() == [1.0, 1.0]
        summed = Gate(self.gate.tpe, self.gate.variables, "episode")
        assert summed(one, trainings).rates.tolist() == [1.0, 4.0]


class TestPrecision:
    @staticmethod
    def entry(number, success, passed=1, filed=True):
        return {"number": number, "success": success, "passed": passed, "filed": filed}

    def test_counts_good_rewards_that_passed_once_both_kinds_were_recorded(self):
        first, vacuous = self.entry(1, [0.0, 0.0], passed=0), self.entry(2, [0.6, 1.0])
        others = [self.entry(3, [0.9, 0.3]), self.entry(4, [0.5, 0.5]), self.entry(5, [1.0], 0)]
        unfiled = self.entry(3, [0.0], filed=False)
        assert precision([first, vacuous, *others, unfiled], demonstrated=False) == 0.5
        assert precision([first, vacuous], demonstrated=False) is None
        assert precision([first, vacuous], demonstrated=True) == 1.0
        assert precision([], demonstrated=True) is None
