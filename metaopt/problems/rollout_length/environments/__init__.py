"""Control tasks, batched: physics as functions of tensors, and any environment of gymnasium."""

from metaopt.problems.rollout_length.environments.acrobot import Acrobot
from metaopt.problems.rollout_length.environments.cart_pole import CartPole
from metaopt.problems.rollout_length.environments.episodes import (
    Environment,
    Episodes,
    Physics,
    Transition,
)
from metaopt.problems.rollout_length.environments.gymnasium_vector import (
    GymnasiumVector,
    from_gymnasium,
)
from metaopt.problems.rollout_length.environments.mountain_car import MountainCar

__all__ = [
    "Acrobot", "CartPole", "Environment", "Episodes", "GymnasiumVector", "MountainCar", "Physics",
    "Transition", "from_gymnasium",
]  # fmt: skip
