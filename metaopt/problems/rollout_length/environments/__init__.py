"""Control tasks for many agents at once: physics as functions of tensors, and gymnasium's own."""

from metaopt.problems.rollout_length.environments.acrobot import Acrobot
from metaopt.problems.rollout_length.environments.cart_pole import CartPole
from metaopt.problems.rollout_length.environments.episodes import (
    Environment,
    Episodes,
    Physics,
    Transition,
)
from metaopt.problems.rollout_length.environments.gymnasium_vector import GymnasiumVector
from metaopt.problems.rollout_length.environments.mountain_car import MountainCar

__all__ = [
    "Acrobot", "CartPole", "Environment", "Episodes", "GymnasiumVector", "MountainCar", "Physics",
    "Transition",
]  # fmt: skip
