"""What a coder is told of an environment, and the reward that the environment itself gives."""

from __future__ import annotations

from collections.abc import Mapping

from metaopt.environments import Acrobot, CartPole, Environment, MountainCar
from metaopt.problems.reward_design.recording import Success
from metaopt.problems.reward_design.variables import name_of, physics_of

TASKS: Mapping[type, tuple[str, str]] = {
    MountainCar: (
        "A car stands in a valley, and its engine is too weak to drive straight up the slope. It "
        "is to reach the goal.",
        "An episode succeeds if the car is there within {limit} steps.",
    ),
    Acrobot: (
        "Two links hang from a pivot, and only the joint between them has a motor. The tip is to "
        "be raised one link's length above the pivot.",
        "An episode succeeds if it is within {limit} steps.",
    ),
    CartPole: (
        "A pole stands on a cart, which is pushed to the left or to the right in each step. The "
        "pole is to stay upright and the cart on the track.",
        "An episode succeeds if they do for {limit} steps; it ends where they do not.",
    ),
}
"""By the class of the environment: what is to be done, and when its own success is reached."""

ENDS: Mapping[str, str] = {
    "terminated": "An episode succeeds if it reaches an end of the task within {limit} steps.",
    "truncated": "An episode succeeds if it lasts for {limit} steps.",
}
"""By how an episode succeeds."""


def task_of(environment: Environment, success: Success) -> str:
    """Return the task in sentences: what is to be achieved and when an episode succeeds."""
    physics = physics_of(environment)
    what, goal = TASKS.get(type(physics), (f"Control {name_of(environment)}.", ""))
    if isinstance(success, float):
        goal = (
            "An episode succeeds if its return, of the environment's own reward, is at least "
            f"{success:g}."
        )
    elif not goal or success != getattr(physics, "success", None):
        goal = ENDS[success]
    return f"{what} {goal.format(limit=environment.time_limit)}"


def first_reward(environment: Environment) -> str:
    """Return the environment's own reward, which must be known as a function of a step.

    Raises:
        ValueError: it is not known; the first reward must be given.
    """
    match physics_of(environment):
        case CartPole():
            return "survival := 1"
        case Acrobot():
            return "cost := -1\ngoal := 1 * terminated"
        case MountainCar(goal_reward=at_goal):
            bonus = at_goal + 1.0
            return "cost := -1" + (f"\ngoal := {bonus:g} * terminated" if bonus else "")
    raise ValueError(
        f"RewardDesign needs the text of a first reward, since the own reward of "
        f"{name_of(environment)} is not "
        "known as an expression; got first=None. Set problem.first, such as "
        "'problem.first=\"cost := -1\"'."
    )
