"""What a reward may read of an environment."""

from __future__ import annotations

from dataclasses import replace

from metaopt.environments import Acrobot, CartPole, Environment, GymnasiumVector, MountainCar
from metaopt.problems.reward_design.variables.classic_control import (
    acrobot,
    cart_pole,
    mountain_car,
)
from metaopt.problems.reward_design.variables.quantities import (
    Quantity,
    Variables,
    named,
    unnamed,
)

GYMNASIUM: dict[str, Environment] = {
    "Acrobot-v1": Acrobot(),
    "CartPole-v0": CartPole(),
    "CartPole-v1": CartPole(),
    "MountainCar-v0": MountainCar(),
}
"""Environments of gymnasium whose physics are here, too."""

__all__ = ["Quantity", "Variables", "name_of", "named", "of", "physics_of", "unnamed"]


def of(environment: Environment) -> Variables:
    """Return the variables of an environment.

    Classic control has named ones, with energies and heights, whether its physics are tensors or
    gymnasium's; any other environment has those of its `observations`, or `o0`, `o1`, ... before a
    step and `n0`, `n1`, ... after it.

    Raises:
        ValueError: the environment reports a time limit as the end of its task, or it has a name
            that no variable can have.
    """
    if isinstance(environment, GymnasiumVector) and environment.observations is not None:
        return named(environment.observations, environment.action_size)
    environment = physics_of(environment)
    if isinstance(environment, GymnasiumVector):
        if environment.id == "MountainCarContinuous-v0":
            hill = mountain_car(MountainCar(goal=0.45))
            return replace(hill, action="push from -1 (left) to 1 (right)", action_size=1)
        return unnamed(environment.observation_size, environment.action_size)
    if environment.timeout_is_terminal:
        raise ValueError(
            "A reward reads `terminated`, which must not see time limits; set "
            "problem.trainer.environment.timeout_is_terminal=false."
        )
    match environment:
        case MountainCar():
            return mountain_car(environment)
        case CartPole():
            return cart_pole(environment)
        case Acrobot():
            return acrobot(environment)
    return unnamed(environment.observation_size)


def name_of(environment: Environment) -> str:
    """Return gymnasium's id of an environment, or the name of its class."""
    return str(getattr(environment, "id", type(environment).__name__))


def physics_of(environment: Environment) -> Environment:
    """Return the physics of gymnasium's classic control, and any other environment as it is."""
    return GYMNASIUM.get(getattr(environment, "id", ""), environment)
