"""Control tasks for many agents at once: physics as functions of tensors, and gymnasium's own."""

from metaopt.data.environments.acrobot import Acrobot
from metaopt.data.environments.cart_pole import CartPole
from metaopt.data.environments.episodes import Environment, Episodes, Physics, Transition
from metaopt.data.environments.gymnasium_vector import GymnasiumVector
from metaopt.data.environments.mountain_car import MountainCar

__all__ = [
    "Acrobot", "CartPole", "Environment", "Episodes", "GymnasiumVector", "MountainCar", "Physics",
    "Transition",
]  # fmt: skip
