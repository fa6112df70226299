"""Real steps of R learners, act, store, learn, and episodes of their greedy policies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.environments import Environment
from metaopt.environments.episodes import Episodes, Transition
from metaopt.environments.q_network import QNetwork, QViews
from metaopt.environments.transitions import Batch, pack, pick, uniform_index

CHECK_EVERY = 32
"""Steps between two checks whether all episodes are over; each check waits for the device."""

Reward = Callable[[Tensor, Transition], Tensor]
"""Returns what a learner is rewarded with, (R, E), for actions (R, E) and their step."""


Watch = Callable[[Tensor, Transition, Tensor], None]
"""Is called with actions (R, n), the step that they made, and which episodes are open, (R, n)."""


def environment_reward(action: Tensor, moved: Transition) -> Tensor:
    """Return the environment's own reward."""
    return moved.reward


@tree.tagged("experience")
class Experience(NamedTuple):
    """What R learners learn from, and the episodes that add to it.

    Args:
        transitions: packed, in the learners' units, (R, N + 1, w) at least; the last place is a
            spare one.
        size: number of real transitions of each run, (R, 1).
        episodes: under way, (R, E).
    """

    transitions: Tensor
    size: Tensor
    episodes: Episodes


class Acted(NamedTuple):
    """What some real steps have left.

    Args:
        experience: with the transitions of these steps.
        updates: updates of each learner.
        steps: real steps of all runs together; resets in the place of a step are none.
    """

    experience: Experience
    updates: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Acting:
    """R learners act in E environments each, store what happens and learn from it.

    Args:
        agent: what the learners are.
        unit: typical magnitude of each observation, (d): what the learners see is divided by it.
        environments: number E.
        batch: transitions of an update.
        updates_per_step: updates of a learner per real step of its run.
    """

    agent: QNetwork
    unit: Tensor
    environments: int
    batch: int
    updates_per_step: float

    def __call__(
        self, environment: Environment, learners: QViews, experience: Experience, steps: range,
        epsilon: Callable[[int], float], draw: Generator, reward: Reward = environment_reward,
        watch: Callable[[Transition], None] | None = None,
    ) -> Acted:  # fmt: skip
        """Return what the steps have left; `learners` and `experience` are modified in place.

        Args:
            environment: where. Resets that take the place of a step (`GymnasiumVector`) are part
                of the steps, but neither stored nor counted as real ones.
            learners: those who act and learn.
            experience: do not use it afterwards.
            steps: numbers of the real steps of each run; their number is a multiple of E.
            epsilon: probability of a random action at the step of a number.
            draw: where randomness comes from, on the device of the learners.
            reward: what the learners are rewarded with.
            watch: called with each step of the environments.

        Cost: no wait for the device.
        """
        transitions, size, episodes = experience
        count = self.environments
        made_before = 0 if environment.resumable else int(size.sum())
        if not environment.resumable:
            episodes = environment.begin((len(size), count), draw, self.unit.dtype)
        updates = 0
        for step in range(steps.start, steps.stop, count):
            before = episodes.observation / self.unit
            action = self.agent.act(learners, before, epsilon(step), draw)
            episodes, moved = environment.step(episodes, action, draw)
            after, ends = moved.next_observation / self.unit, moved.terminated.to(self.unit.dtype)
            made = pack(Batch(before, action, reward(action, moved), after, ends))
            if environment.resumable:  # every step is valid, so that their places are known
                transitions[:, step : step + count] = made
                size = size + count
            else:
                size = _store(transitions, size, made, moved.valid)
            if watch is not None:
                watch(moved)
            updates += self._learn(learners, transitions, size, step, draw)
        known = len(size) * len(steps)
        real = known if environment.resumable else int(size.sum()) - made_before
        return Acted(Experience(transitions, size, episodes), updates, real)

    def _learn(
        self, learners: QViews, transitions: Tensor, size: Tensor, step: int, draw: Generator
    ) -> int:
        """Make the updates that are due after the steps from `step` on; return their number."""
        stop = step + self.environments
        if stop < self.batch:
            return 0
        due = whole(stop * self.updates_per_step) - whole(step * self.updates_per_step)
        for _ in range(due):
            index = uniform_index(size, self.batch, draw)
            self.agent.update_(learners, pick(transitions, index))
        return due

    def greedy(
        self, environment: Environment, learners: QViews, shape: tuple[int, int], draw: Generator,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return returns and lengths (R, n) of n episodes of each learner's greedy policy."""

        def policy(observation: Tensor) -> Tensor:
            return self.agent.act(learners, observation / self.unit, 0.0, draw)

        return play(environment, policy, shape, draw, self.unit.dtype, watch)


def play(
    environment: Environment,
    policy: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
    draw: Generator,
    dtype: torch.dtype = torch.float32,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Return returns and lengths of episodes of a policy, (R, n).

    An episode that is still open after the time limit (of a simulator that does not keep to it)
    counts with what it gained and took so far.

    Args:
        environment: where.
        policy: returns the actions (R, n) at observations (R, n, d).
        shape: R and n.
        draw: where the environment's randomness comes from.
        dtype: of the observations.
        watch: called with the actions, the step, and which episodes are still open, (R, n).
    """
    current = environment.begin(shape, draw, dtype)
    returns = torch.zeros_like(current.total)
    lengths, open_ = torch.zeros_like(current.age), torch.ones_like(returns, dtype=torch.bool)
    for step in range(environment.time_limit):
        action = policy(current.observation)
        current, moved = environment.step(current, action, draw)
        if watch is not None:
            watch(action, moved, open_)
        over = (moved.terminated | moved.truncated) & moved.valid & open_
        returns = torch.where(over, moved.total, returns)
        lengths = torch.where(over, moved.age, lengths)
        open_ = open_ & ~over
        if (step + 1) % CHECK_EVERY == 0 and not bool(open_.any()):
            break
    returns = torch.where(open_, current.total, returns)
    return returns, torch.where(open_, current.age, lengths)


def whole(x: float) -> int:
    """Return the whole part of x >= 0; 2.999... is a 3 that was computed."""
    return math.floor(x + 1e-9)


def _store(transitions: Tensor, size: Tensor, made: Tensor, valid: Tensor) -> Tensor:
    """Write the valid ones behind the first `size` of each run; return the new sizes (R, 1)."""
    spare = transitions.shape[1] - 1  # where those go that are not valid: no shape may depend on it
    place = torch.where(valid, size + valid.cumsum(1) - 1, spare)
    transitions.scatter_(1, place.unsqueeze(-1).expand_as(made), made)
    return size + valid.sum(1, keepdim=True)
