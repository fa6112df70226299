"""A phase of real steps, and the episodes that ended in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Generator

from metaopt.environments import Environment, Transition
from metaopt.environments.acting import Experience
from metaopt.problems.rollout_length.evaluation import Finished
from metaopt.problems.rollout_length.state import Runs

if TYPE_CHECKING:
    from metaopt.problems.rollout_length.problem import RolloutLength


def act(
    problem: RolloutLength, environment: Environment, runs: Runs, draw: Generator
) -> tuple[Runs, Finished]:
    """Return the runs after a phase of real steps, and the episodes that ended in it.

    Args:
        problem: its options, and what the runs' learners are.
        environment: where.
        runs: modified in place; do not use them afterwards.
        draw: where randomness comes from, on the device of the runs.

    Cost: no wait for the device.
    """
    unit, phase, first = problem.unit, problem.phase, runs.step * problem.phase
    finished = Finished.none(len(runs.size), problem.error_episodes, len(unit), unit)

    def watch(moved: Transition) -> None:
        nonlocal finished
        finished = finished.with_(moved, moved.first / unit)

    acted = problem.acting(
        environment,
        problem.agent.views(runs.agent),
        Experience(runs.transitions, runs.size, runs.episodes),
        range(first, first + phase),
        lambda step: problem.exploration(step, phase),
        draw,
        watch=watch,
    )
    runs = runs._replace(
        size=acted.experience.size,
        episodes=acted.experience.episodes,
        updates=runs.updates + acted.updates,
        environment_steps=runs.environment_steps + acted.steps,
        gradients=runs.gradients + len(runs.size) * acted.updates,
    )
    return runs, finished
