"""A phase of real steps: act, store, learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.dyna.q_network import QNetwork
from metaopt.problems.rollout_length.dyna.transitions import Batch, pack, pick, uniform_index
from metaopt.problems.rollout_length.environments import Environment
from metaopt.problems.rollout_length.evaluation import Finished
from metaopt.problems.rollout_length.options import Exploration
from metaopt.problems.rollout_length.planning import whole
from metaopt.problems.rollout_length.state import Runs


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How real steps are made; see `RolloutLength` for the arguments."""

    environments: int
    phase: int
    batch: int
    updates_per_step: float
    error_episodes: int
    exploration: Exploration


def act(
    how: Acting, environment: Environment, agent: QNetwork, runs: Runs, unit: Tensor,
    draw: Generator,
) -> tuple[Runs, Finished]:  # fmt: skip
    """Return the runs after a phase of real steps, and the episodes that ended in it.

    Args:
        how: the settings.
        environment: where.
        agent: what the runs' learners are.
        runs: given away: their tensors are updated in place.
        unit: what observations are divided by, (d).
        draw: where randomness comes from, on the device of the runs.

    Resets that take the place of a step (`GymnasiumVector`) are part of the phase, but neither
    stored nor counted as real steps.

    Cost: no wait for the device, with physics on tensors.
    """
    size, episodes, abreast = runs.size, runs.episodes, how.environments
    made_before = 0 if environment.resumable else int(size.sum())
    if not environment.resumable:
        episodes = environment.begin((len(size), abreast), draw, unit.dtype)
    learners = agent.views(runs.agent)
    finished = Finished.none(len(size), how.error_episodes, len(unit), unit)
    first, updates = runs.step * how.phase, 0
    for step in range(first, first + how.phase, abreast):
        before = episodes.observation / unit
        action = agent.act(learners, before, how.exploration(step, how.phase), draw)
        episodes, moved = environment.step(episodes, action, draw)
        after, ends = moved.next_observation / unit, moved.terminated.to(unit.dtype)
        made = pack(Batch(before, action, moved.reward, after, ends))
        if environment.resumable:
            runs.transitions[:, step : step + abreast] = made
            size = size + abreast
        else:
            size = _store(runs.transitions, size, made, moved.valid)
        finished = finished.with_(moved, moved.first / unit)
        if (stop := step + abreast) < how.batch:
            continue
        due = whole(stop * how.updates_per_step) - whole(step * how.updates_per_step)
        for _ in range(due):
            index = uniform_index(size, how.batch, draw)
            agent.update_(learners, pick(runs.transitions, index))
        updates += due
    real = len(size) * how.phase if environment.resumable else int(size.sum()) - made_before
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
