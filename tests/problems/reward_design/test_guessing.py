"""Random rewards of the terms that rewards are made of."""

import numpy as np
import pytest

from metaopt.environments import CartPole, MountainCar
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.guessing import SIZES, guess
from metaopt.problems.reward_design.language import parse


@pytest.mark.parametrize(
    "names",
    [
        list(variables.of(MountainCar()).names), list(variables.of(CartPole()).names),
        list(variables.unnamed(3).names),
    ],
    ids=["car", "pole", "unnamed"],
)  # fmt: skip
def test_a_guess_is_a_reward_of_one_to_three_terms(names):
    draw = np.random.default_rng(0)
    rewards = [parse(guess(names, draw), names) for _ in range(100)]
    assert {len(reward.terms) for reward in rewards} == {1, 2, 3}
    assert {abs(term.weight) for reward in rewards for term in reward.terms} == {*SIZES}
    assert {term.weight > 0 for reward in rewards for term in reward.terms} == {True, False}
    read = {name for reward in rewards for name in reward.names}
    assert read == {*names} - {"action"}


def test_a_task_without_quantities_has_a_constant():
    assert guess(["x"], np.random.default_rng(0)).startswith("constant := ")


def test_a_guess_is_a_function_of_its_draw():
    names = list(variables.of(MountainCar()).names)
    first, again, other = (guess(names, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
