"""Control tasks, batched: physics as functions of tensors, and any environment of gymnasium."""

from metaopt.problems.rollout_length.environments.classic_control import (
    Acrobot,
    CartPole,
    MountainCar,
)
from metaopt.problems.rollout_length.environments.episodes import Episodes, Physics, Transition
from metaopt.problems.rollout_length.environments.gymnasium_vector import GymnasiumVector

Environment = Physics | GymnasiumVector

__all__ = [
    "Acrobot", "CartPole", "Environment", "Episodes", "GymnasiumVector", "MountainCar", "Physics",
    "Transition",
]  # fmt: skip
