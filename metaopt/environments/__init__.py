"""Control tasks, batched, and deep Q-learning in them.

`episodes` says what an environment is, `classic_control` has physics as functions of tensors,
`gymnasium_vector` any environment of gymnasium. `acting` is the loop (act, store, learn) of R
learners, which are a `q_network` on `transitions`, with networks and Adam of `stacked`;
`exploration` says how often they act at random.
"""

from metaopt.environments.classic_control import (
    Acrobot,
    CartPole,
    MountainCar,
)
from metaopt.environments.episodes import Episodes, Physics, Transition
from metaopt.environments.gymnasium_vector import GymnasiumVector

Environment = Physics | GymnasiumVector

__all__ = [
    "Acrobot", "CartPole", "Environment", "Episodes", "GymnasiumVector", "MountainCar", "Physics",
    "Transition",
]  # fmt: skip
