"""Recorded episodes from elsewhere: successes of a scripted controller, failures of chance.

They are information that a reward's designer does not have otherwise: a store that starts with them
is a method of its own, not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from metaopt.engine.random import fold, generator
from metaopt.environments import Acrobot, CartPole, Environment, MountainCar
from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.recording import Success, recorded
from metaopt.problems.reward_design.returns import step_rewards
from metaopt.problems.reward_design.training import Training, Trajectories, join
from metaopt.problems.reward_design.variables import Variables, name_of

Policy = Callable[[Tensor], Tensor]

ROUND, ROUNDS = 16, 8
"""Episodes played at a time until there are enough of a kind, and how many times at most."""


def _mountain_car(observation: Tensor) -> Tensor:
    """Push where the car is going already, which adds energy in each step."""
    return torch.where(observation[..., 1] >= 0, 2, 0)


def _acrobot(observation: Tensor) -> Tensor:
    """Turn the second link where it is turning already, which adds energy in each step."""
    return torch.where(observation[..., 5] >= 0, 2, 0)


def _cart_pole(observation: Tensor) -> Tensor:
    """Push to where the pole falls, and a little to where the cart is off the middle."""
    lean = observation @ observation.new_tensor([0.05, 0.1, 1.0, 0.4])
    return (lean > 0).long()


CONTROLLERS: Mapping[type, Policy] = {
    Acrobot: _acrobot, CartPole: _cart_pole, MountainCar: _mountain_car,
}  # fmt: skip


def demonstrations(
    environment: Environment, success: Success, count: int, key: int
) -> tuple[Trajectories, int]:
    """Return `count` successes of a scripted controller and as many failures of random actions.

    The second value are the environment steps of all episodes that were played for them.

    Raises:
        ValueError: no controller is known for the environment, or it does not succeed, or random
            actions do not fail.
    """
    name = name_of(environment)
    controller = CONTROLLERS.get(type(environment))
    if controller is None:
        legal = ", ".join(kind.__name__ for kind in CONTROLLERS)
        raise ValueError(
            f"demonstrations={count} needs a scripted controller, and {name} has none; {legal} "
            "have one. Use demonstrations=0."
        )
    draw = generator(fold(key, "random actions"))

    def at_random(observation: Tensor) -> Tensor:
        return torch.randint(environment.actions, observation.shape[:-1], generator=draw)

    kinds, steps = [], 0
    for policy, won in ((controller, True), (at_random, False)):
        parts, number = [], 0
        for i in range(ROUNDS):
            play = generator(fold(key, "demonstrations", i))
            episodes = recorded(environment, policy, (1, ROUND), play, success)
            steps += int(episodes.length.sum())
            parts.append(episodes.select(episodes.success == won))
            number += len(parts[-1].length)
            if number >= count:
                break
        if number < count:
            who = "its controller succeeds" if won else "random actions fail"
            raise ValueError(
                f"demonstrations={count} cannot be had of {name}: in {ROUND * ROUNDS} episodes "
                f"{who} {number} times. Use demonstrations={number}."
            )
        kinds.append(join(parts).select(torch.arange(count)))
    return join(kinds), steps


class Exploited:
    """Says whether a reward was exploited: much of it, and no success.

    Its yardstick is what the reward gives a scripted controller that succeeds. What that plays
    serves the measurement alone, and nothing of it reaches a coder.

    Args:
        environment: where.
        success: how an episode succeeds.
        variables: of the environment.
        below: success below which a training has failed.
    """

    def __init__(
        self, environment: Environment, success: Success, variables: Variables, below: float = 0.2
    ) -> None:
        self.environment, self.success, self.variables = environment, success, variables
        self.below = below

    @cached_property
    def controlled(self) -> Trajectories | None:
        """Successes of the controller; `None` where there is none, or it does not succeed."""
        controller = CONTROLLERS.get(type(self.environment))
        if controller is None:
            return None
        draw = generator(fold(0, "controller"))
        episodes = recorded(self.environment, controller, (1, ROUND), draw, self.success)
        return episodes.select(episodes.success) if bool(episodes.success.any()) else None

    def share(
        self, trainings: Sequence[Training], read: Callable[[str], Expression]
    ) -> float | None:
        """Return the share of trainings whose reward was exploited; `None` without a yardstick."""
        if self.controlled is None:
            return None
        count = 0
        for training in trainings:
            reward = read(training.reward)
            bar = step_rewards(reward, self.variables, self.controlled).sum(1).mean()
            count += training.mean_success < self.below and training.curve["return"][-1] > float(
                bar
            )
        return count / len(trainings)
