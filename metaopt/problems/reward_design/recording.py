"""Episodes, recorded: what a policy did, and whether it succeeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from metaopt.environments import Environment, Transition
from metaopt.environments.acting import play
from metaopt.problems.reward_design.training import Trajectories
from metaopt.problems.reward_design.variables import name_of

Success = Literal["terminated", "truncated"] | float
"""How an episode succeeds: by ending in a state of the task (a goal), by lasting until the time
limit, or by a return of the environment's own reward of at least this number."""


def success_of(environment: Environment, success: Success | None) -> Success:
    """Return how an episode of an environment succeeds.

    Raises:
        ValueError: the environment does not say, or the criterion is none.
    """
    if success is None:
        success = getattr(environment, "success", None)
    if success == "terminated" or success == "truncated":
        return success
    if isinstance(success, (int, float)) and not isinstance(success, bool):
        return float(success)
    raise ValueError(
        f"RewardDesign needs success to be terminated (the task ends), truncated (the episode "
        f"lasts until its time limit) or a least return; got {success!r}, and "
        f"{name_of(environment)} does not say. Set problem.trainer.success."
    )


class Recorder:
    """Keeps the episodes of `metaopt.environments.acting.play`, whose `watch` it is.

    Args:
        shape: R and n: learners and episodes of each.
        environment: where.
        success: how an episode succeeds.
        device: where the episodes are played; no step waits for it.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        environment: Environment,
        success: Success,
        device: torch.device | str = "cpu",
    ) -> None:
        steps, d = environment.time_limit, environment.observation_size
        self.success = success
        self.observations = torch.zeros(*shape, steps + 1, d, device=device)
        size = getattr(environment, "action_size", 0)
        number = torch.float32 if size else torch.int16
        vector = [size] if size else []
        self.actions = torch.zeros(*shape, steps, *vector, dtype=number, device=device)
        self.won = torch.zeros(shape, dtype=torch.bool, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.step = 0

    def __call__(self, action: Tensor, moved: Transition, open_: Tensor) -> None:
        """Keep a step of the episodes that are open."""
        rows, step = self.observations, self.step
        if step == 0:
            rows[:, :, 0] = moved.observation
        rows[:, :, step + 1] = torch.where(
            open_.unsqueeze(-1), moved.next_observation, rows[:, :, step]
        )
        made = open_.unsqueeze(-1) if self.actions.dim() > 3 else open_
        self.actions[:, :, step] = (action * made).to(self.actions.dtype)
        over = open_ & (moved.terminated | moved.truncated)
        self.terminated |= over & moved.terminated
        if self.success == "terminated":
            self.won |= over & moved.terminated
        elif self.success == "truncated":
            self.won |= over & moved.truncated & ~moved.terminated
        else:
            self.won |= over & (moved.total >= self.success)
        self.step += 1

    def trajectories(self, lengths: Tensor) -> Trajectories:
        """Return the episodes (R * n), those of a learner one after the other.

        Args:
            lengths: as `play` returned them, (R, n).
        """
        rows = self.observations  # of steps that no episode has taken, too
        rows[:, :, self.step + 1 :] = rows[:, :, self.step].unsqueeze(2)
        short = rows.half()
        short = short if bool(short.isfinite().all()) else rows  # beyond 65,504
        fields = (short, self.actions, lengths, self.won, self.terminated)
        return Trajectories(*(field.cpu().flatten(0, 1) for field in fields))


def sample(episodes: Trajectories, count: int) -> Trajectories:
    """Return at most `count` of the episodes, half of each kind where there are as many.

    Episodes are taken from everywhere, so that each learner has some among them.
    """
    half = count // 2
    kinds = [torch.nonzero(kind).flatten() for kind in (episodes.success, ~episodes.success)]
    sizes = [len(kind) for kind in kinds]
    most = [max(half, count - sizes[1]), max(count - half, count - sizes[0])]
    chosen = [_spread(kind, m) for kind, m in zip(kinds, most, strict=True)]
    return episodes.select(torch.cat(chosen).sort().values)


def _spread(index: Tensor, count: int) -> Tensor:
    """Return `count` entries of an index, evenly spaced, or all of them where there are fewer."""
    if len(index) <= count:
        return index
    return index[(torch.arange(count) * len(index)) // max(count, 1)]


def recorded(
    environment: Environment, policy: Callable[[Tensor], Tensor], shape: tuple[int, int],
    draw: Generator, success: Success,
) -> Trajectories:  # fmt: skip
    """Return R * n episodes of a policy."""
    recorder = Recorder(shape, environment, success)
    _, lengths = play(environment, policy, shape, draw, watch=recorder)
    return recorder.trajectories(lengths)
