"""Planning in Dyna: rollouts of a learned model, and updates on what they yield."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.problems.rollout_length.dyna.q_network import QNetwork, QViews
from metaopt.problems.rollout_length.dyna.transitions import Batch, pack, pick, uniform_index
from metaopt.problems.rollout_length.dyna.world_model import ModelViews, WorldModel


@tree.tagged("planned")
class Planned(NamedTuple):
    """What a phase of planning did, by run.

    Args:
        steps: synthetic steps, (R) integers.
        rollouts: rollouts begun, (R) integers.
        longest: steps of the longest one, (R) integers.
        updates: updates of the agent, (R) integers.
    """

    steps: Tensor
    rollouts: Tensor
    longest: Tensor
    updates: Tensor


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Rollouts of at most K steps, S steps in all whatever K: K is the shape of planning.

    A rollout starts at an observation drawn uniformly from the real data, acts epsilon-greedily,
    and ends after K steps or where the model says that the episode does. `slots` rollouts are
    batched, and one that ends is followed by another until the phase's S = `ratio` * P synthetic
    steps are made (Bhatia, Thomas and Zilberstein, arXiv 2206.02380, 2022, have M = P / K rollouts
    of K steps; where K does not divide S / slots, the last rollout of a slot is cut short).

    Args:
        cap: largest rollout length, >= 1.
        ratio: synthetic steps per real step, > 0.
        slots: rollouts in a batch, >= 1; `None` for as many as leave room for a whole rollout of
            `cap` steps in each.
        epsilon: probability of a random action, in [0, 1].
        end_probability: predicted probability above which an episode ends, in (0, 1).
        updates_per_step: updates per synthetic step, > 0; `None` for as many as per real step.
        interleave: update between the rollouts' steps, on the transitions made so far, as the paper
            does; where not, after all of them, which draws early and late ones alike.
    """

    cap: int = 32
    ratio: float = 1.0
    slots: int | None = None
    epsilon: float = 0.1
    end_probability: float = 0.5
    updates_per_step: float | None = None
    interleave: bool = True

    def __post_init__(self) -> None:
        if self.cap < 1 or not self.ratio > 0 or (self.slots is not None and self.slots < 1):
            raise ValueError(
                f"Planner needs cap >= 1, ratio > 0 and slots >= 1 or null; got cap={self.cap}, "
                f"ratio={self.ratio}, slots={self.slots}."
            )
        if not 0 <= self.epsilon <= 1 or not 0 < self.end_probability < 1:
            raise ValueError(
                f"Planner needs 0 <= epsilon <= 1 and 0 < end_probability < 1; got "
                f"epsilon={self.epsilon}, end_probability={self.end_probability}."
            )
        if self.updates_per_step is not None and not self.updates_per_step > 0:
            raise ValueError(
                f"Planner needs updates_per_step > 0 or null; got {self.updates_per_step}."
            )

    @property
    def end(self) -> float:
        """The log-odds of `end_probability`."""
        return math.log(self.end_probability / (1 - self.end_probability))

    def steps(self, phase: int) -> int:
        """Return the number S of synthetic steps that follow a phase of `phase` real ones."""
        return max(1, round(self.ratio * phase))

    def rollouts(self, phase: int) -> int:
        """Return the number of rollouts in a batch."""
        steps = self.steps(phase)
        return min(steps, self.slots or max(1, steps // self.cap))

    def check(self, phase: int) -> None:
        """Raise a `ValueError` where a rollout of `cap` steps does not fit into a slot."""
        steps, slots = self.steps(phase), self.rollouts(phase)
        if steps < self.cap * slots:
            raise ValueError(
                f"Planner makes {steps} synthetic steps a phase in {slots} slots, too few for "
                f"rollouts of cap={self.cap} steps. Use a longer phase, a smaller cap or fewer "
                f"slots."
            )


class Planning(NamedTuple):
    """What planning works on.

    Args:
        agent, learners: the Q-networks, and their state, updated in place.
        model, models: the world models, and their state.
        transitions: packed: real ones from index 0 on, room for S synthetic ones at `first`,
            (R, n, w).
        size: number of real transitions of each run, (R, 1).
        first: index of the first synthetic transition.
    """

    agent: QNetwork
    learners: QViews
    model: WorldModel
    models: ModelViews
    transitions: Tensor
    size: Tensor
    first: int


def plan(
    planner: Planner, on: Planning, lengths: Tensor, real: Tensor, phase: int,
    batch: int, updates_per_step: float, draw: Generator,
) -> Planned:  # fmt: skip
    """Plan with each run's length; a run of length 0 is left as it was.

    Args:
        planner: how to plan.
        on: what with.
        lengths: rollout lengths, (R) integers on the CPU.
        real: runs that make the same updates on real data instead, (R) booleans on the CPU; their
            lengths are not read.
        phase: real steps of a phase.
        batch: transitions of an update.
        updates_per_step: updates per real step, and per synthetic one where the planner does not
            say otherwise.
        draw: where randomness comes from, on the device of the runs.

    Cost: no wait for the device.
    """
    device, runs = on.transitions.device, len(lengths)
    rolling = (lengths > 0) & ~real
    total, slots = planner.steps(phase), planner.rollouts(phase)
    updating = rolling | real
    rate = updates_per_step if planner.updates_per_step is None else planner.updates_per_step
    updates = whole(total * rate)
    begun = torch.zeros(runs, dtype=torch.long, device=device)
    longest = torch.zeros_like(begun)
    if bool(updating.any()):
        every = bool(updating.all())
        active = None if every else updating.to(device, on.transitions.dtype).unsqueeze(1)
        on_real = real.to(device).unsqueeze(1)
        rollouts = _Rollouts(planner, on, lengths.to(device).unsqueeze(1), slots, draw)
        low = torch.where(on_real, 0, on.first)

        def learn(count: int, made: int) -> None:
            stock = torch.where(on_real, on.size, made)
            for _ in range(count):
                index = low + uniform_index(stock, batch, draw)
                on.agent.update_(on.learners, pick(on.transitions, index), active)

        for made in range(0, total, slots):
            stop = min(made + slots, total)
            if bool(rolling.any()):
                starts, ages = rollouts.step(on.first + made, stop - made)
                begun += starts
                longest = torch.maximum(longest, ages)
            if planner.interleave:
                learn(whole(stop * rate) - whole(made * rate), stop)
        if not planner.interleave:
            learn(updates, total)
    rolled = rolling.to(device)
    return Planned(total * rolled, begun * rolled, longest * rolled, updates * updating.to(device))


class _Rollouts:
    """Rollouts of all runs, batched in slots."""

    def __init__(
        self, planner: Planner, on: Planning, lengths: Tensor, slots: int, draw: Generator
    ) -> None:
        self.planner, self.on, self.lengths = planner, on, lengths
        self.slots, self.draw = slots, draw
        self.observation = self._starts()
        self.age = torch.zeros(self.observation.shape[:2], dtype=torch.long, device=lengths.device)

    def step(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Take a step in each slot and write the first `count` from index `first` on.

        Returns:
            How many of those began a rollout, and the largest age among them, both (R).
        """
        on, before = self.on, self.observation
        action = on.agent.act(on.learners, before, self.planner.epsilon, self.draw)
        after, reward, log_odds = on.model.predict(on.models, before, action)
        ends = log_odds > self.planner.end
        made = pack(Batch(before, action, reward, after, ends.to(reward.dtype)))
        on.transitions[:, first : first + count] = made[:, :count]
        began = (self.age[:, :count] == 0).sum(1)
        self.age += 1
        oldest = self.age[:, :count].amax(1)
        over = ends | (self.age >= self.lengths)
        self.observation = torch.where(over.unsqueeze(-1), self._starts(), after)
        self.age.masked_fill_(over, 0)
        return began, oldest

    def _starts(self) -> Tensor:
        index = uniform_index(self.on.size, self.slots, self.draw)
        return pick(self.on.transitions, index).observation


def whole(x: float) -> int:
    """Return the whole part of x >= 0; 2.999... is a 3 that was computed."""
    return math.floor(x + 1e-9)
