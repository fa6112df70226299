"""The bank of rewards: which they are, that they differ, and what three of them give by hand."""

import math

import pytest
import torch

from metaopt.environments import MountainCar
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.bank import NAMED, TERMS, mountain_car_rewards
from metaopt.problems.reward_design.language import parse


def test_has_eleven_named_and_25_random_rewards():
    rewards, read = mountain_car_rewards(), variables.of(MountainCar())
    assert len(rewards) == 36
    assert list(rewards)[:11] == list(NAMED)
    assert len(set(rewards.values())) == 36
    terms = [parse(text, read.names).terms for text in rewards.values()]
    assert {len(its) for its in terms} == {1, 2, 3}
    assert {term.name for its in terms for term in its} == set(TERMS)


def test_a_longer_bank_begins_with_the_shorter():
    short, long = mountain_car_rewards(5), mountain_car_rewards(9)
    assert list(long.items())[:16] == list(short.items())
    assert mountain_car_rewards(5, seed=1) != short
    with pytest.raises(ValueError, match="0 <= random <= 1000; got -1"):
        mountain_car_rewards(-1)


def test_values_by_hand():
    read, rewards = variables.of(MountainCar()), mountain_car_rewards(0)
    before = torch.tensor([[[-0.6, 0.01]]], dtype=torch.float64)
    after = torch.tensor([[[0.5, 0.03]]], dtype=torch.float64)
    values = read(before, torch.tensor([[2]]), after, torch.tensor([[True]]))

    def energy(p, v):
        return v**2 / 2 + 0.0025 / 3 * math.sin(3 * p)

    gained = 500 * (energy(0.5, 0.03) - energy(-0.6, 0.01))
    expected = {"cost, gain, goal": gained + 0.5, "speed": 0.3, "progress, goal": 10.0, "own": -1.0}
    for name, value in expected.items():
        assert float(parse(rewards[name], read.names)(values)) == pytest.approx(value, abs=1e-9)
