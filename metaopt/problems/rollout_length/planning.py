"""Planning in Dyna: rollouts of a learned model, and updates on what they yield."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.ranges import check_ranges
from metaopt.environments.acting import whole
from metaopt.environments.q_network import QViews
from metaopt.environments.transitions import Batch, pack, pick, uniform_index

if TYPE_CHECKING:
    from metaopt.problems.rollout_length.problem import RolloutLength
    from metaopt.problems.rollout_length.state import Runs


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
    and ends after K steps or where the model says that the episode does. As many slots are batched
    as have room for a rollout of `cap` steps each; in a slot one rollout follows another until the
    phase's S = `ratio` * P synthetic steps are made (Bhatia, Thomas and Zilberstein, arXiv
    2206.02380, 2022, have M = P / K rollouts of K steps; where K does not divide S / slots, the
    last rollout of a slot is cut short).

    Args:
        cap: largest rollout length, >= 1.
        ratio: synthetic steps per real step, > 0.
        epsilon: probability of a random action, in [0, 1].
        end_probability: predicted probability above which an episode ends, in (0, 1).
        interleave: update between the rollouts' steps, on the transitions made so far, as the paper
            does; where not, after all of them, which draws early and late ones alike.
    """

    cap: int = 32
    ratio: float = 1.0
    epsilon: float = 0.1
    end_probability: float = 0.5
    interleave: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "cap >= 1", "ratio > 0", "0 <= epsilon <= 1", "0 < end_probability < 1")

    @property
    def end(self) -> float:
        """The log-odds of `end_probability`."""
        return math.log(self.end_probability / (1 - self.end_probability))

    def steps(self, phase: int) -> int:
        """Return the number S of synthetic steps that follow a phase of `phase` real ones."""
        return max(1, round(self.ratio * phase))

    def slots(self, phase: int) -> int:
        """Return the number of rollouts in a batch.

        Raises:
            ValueError: a rollout of `cap` steps does not fit into a phase.
        """
        if self.steps(phase) < self.cap:
            raise ValueError(
                f"Planner makes {self.steps(phase)} synthetic steps a phase, too few for rollouts "
                f"of cap={self.cap} steps. Use a longer phase or a smaller cap."
            )
        return self.steps(phase) // self.cap


def plan(problem: RolloutLength, runs: Runs, lengths: Tensor, draw: Generator) -> Planned:
    """Plan with each run's length; a run of length 0 is left as it was.

    Runs that make the same updates on real data instead (`problem.real`) do not roll out.

    Args:
        problem: its options, and what the runs' learners and models are.
        runs: their learners are updated in place, and synthetic transitions written behind the
            real ones.
        lengths: rollout lengths, (R) integers on the CPU, 0 for runs that plan on real data.
        draw: where randomness comes from, on the device of the runs.

    Cost: no wait for the device.
    """
    planner, transitions, first = problem.planner, runs.transitions, problem.steps
    device, rate = transitions.device, problem.updates_per_step
    total, slots = planner.steps(problem.phase), planner.slots(problem.phase)
    rolling = lengths > 0
    updating = rolling | problem.real
    updates = whole(total * rate)
    begun = torch.zeros(len(lengths), dtype=torch.long, device=device)
    longest = torch.zeros_like(begun)
    if bool(updating.any()):
        every = bool(updating.all())
        # Runs that do not plan are masked, not left out: the batch of networks keeps its shape.
        active = None if every else updating.to(device, transitions.dtype).unsqueeze(1)
        on_real = problem.real.to(device).unsqueeze(1)
        learners = problem.agent.views(runs.agent)
        rollouts = _Rollouts(problem, runs, learners, lengths.to(device).unsqueeze(1), slots, draw)
        low = torch.where(on_real, 0, first)

        def learn(count: int, made: int) -> None:
            stock = torch.where(on_real, runs.size, made)
            for _ in range(count):
                index = low + uniform_index(stock, problem.batch, draw)
                problem.agent.update_(learners, pick(transitions, index), active)

        for made in range(0, total, slots):
            stop = min(made + slots, total)
            if bool(rolling.any()):
                starts, ages = rollouts.step(first + made, stop - made)
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
        self, problem: RolloutLength, runs: Runs, learners: QViews, lengths: Tensor, slots: int,
        draw: Generator,
    ) -> None:  # fmt: skip
        self.problem, self.runs, self.learners = problem, runs, learners
        self.models, self.lengths = problem.model.views(runs.model), lengths
        self.slots, self.draw = slots, draw
        self.observation = self._starts()
        self.age = torch.zeros(self.observation.shape[:2], dtype=torch.long, device=lengths.device)

    def step(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Take a step in each slot and write the first `count` from index `first` on.

        Returns:
            How many of those began a rollout, and the largest age among them, both (R).
        """
        problem, before = self.problem, self.observation
        action = problem.agent.act(self.learners, before, problem.planner.epsilon, self.draw)
        after, reward, log_odds = problem.model.predict(self.models, before, action)
        ends = log_odds > problem.planner.end
        made = pack(Batch(before, action, reward, after, ends.to(reward.dtype)))
        self.runs.transitions[:, first : first + count] = made[:, :count]
        began = (self.age[:, :count] == 0).sum(1)
        self.age += 1
        oldest = self.age[:, :count].amax(1)
        over = ends | (self.age >= self.lengths)
        self.observation = torch.where(over.unsqueeze(-1), self._starts(), after)
        self.age.masked_fill_(over, 0)
        return began, oldest

    def _starts(self) -> Tensor:
        index = uniform_index(self.runs.size, self.slots, self.draw)
        return pick(self.runs.transitions, index).observation
