"""A phase of real steps: act, store, learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.dyna.transitions import Batch, pack, pick, uniform_index
from metaopt.problems.rollout_length.environments import Environment
from metaopt.problems.rollout_length.evaluation import Finished
from metaopt.problems.rollout_length.planning import whole
from metaopt.problems.rollout_length.state import Runs

if TYPE_CHECKING:
    from metaopt.problems.rollout_length.problem import RolloutLength


def act(
    problem: RolloutLength, environment: Environment, runs: Runs, draw: Generator
) -> tuple[Runs, Finished]:
    """Return the runs after a phase of real steps, and the episodes that ended in it.

    Resets that take the place of a step (`GymnasiumVector`) are part of the phase, but neither
    stored nor counted as real steps.

    Args:
        problem: its options, and what the runs' learners are.
        environment: where.
        runs: modified in place; do not use them afterwards.
        draw: where randomness comes from, on the device of the runs.

    Cost: no wait for the device.
    """
    agent, unit = problem.agent, problem.unit
    size, episodes, abreast = runs.size, runs.episodes, problem.environments
    made_before = 0 if environment.resumable else int(size.sum())
    if not environment.resumable:
        episodes = environment.begin((len(size), abreast), draw, unit.dtype)
    learners = agent.views(runs.agent)
    finished = Finished.none(len(size), problem.error_episodes, len(unit), unit)
    first, updates = runs.step * problem.phase, 0
    for step in range(first, first + problem.phase, abreast):
        before = episodes.observation / unit
        action = agent.act(learners, before, problem.exploration(step, problem.phase), draw)
        episodes, moved = environment.step(episodes, action, draw)
        after, ends = moved.next_observation / unit, moved.terminated.to(unit.dtype)
        made = pack(Batch(before, action, moved.reward, after, ends))
        if environment.resumable:  # every step is valid, so that their places are known
            runs.transitions[:, step : step + abreast] = made
            size = size + abreast
        else:
            size = _store(runs.transitions, size, made, moved.valid)
        finished = finished.with_(moved, moved.first / unit)
        if (stop := step + abreast) < problem.batch:
            continue
        due = whole(stop * problem.updates_per_step) - whole(step * problem.updates_per_step)
        for _ in range(due):
            index = uniform_index(size, problem.batch, draw)
            agent.update_(learners, pick(runs.transitions, index))
        updates += due
    real = len(size) * problem.phase if environment.resumable else int(size.sum()) - made_before
    runs = runs._replace(
        size=size,
        episodes=episodes,
        updates=runs.updates + updates,
        environment_steps=runs.environment_steps + real,
        gradients=runs.gradients + len(size) * updates,
    )
    return runs, finished


def _store(transitions: Tensor, size: Tensor, made: Tensor, valid: Tensor) -> Tensor:
    """Write the valid ones behind the first `size` of each run; return the new sizes (R, 1)."""
    spare = transitions.shape[1] - 1  # where those go that are not valid: no shape may depend on it
    place = torch.where(valid, size + valid.cumsum(1) - 1, spare)
    transitions.scatter_(1, place.unsqueeze(-1).expand_as(made), made)
    return size + valid.sum(1, keepdim=True)
