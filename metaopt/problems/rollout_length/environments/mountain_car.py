"""MountainCar: drive an engine that is too weak out of a valley."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.environments.episodes import Physics, uniform

VALLEY = -math.pi / 6
"""Position of the lowest point."""


@final
@dataclass(frozen=True, kw_only=True)
class MountainCar(Physics):
    """Reach the goal on a slope: reward -1 a step until then.

    The equations and the start, uniform in [-0.6, -0.4] at rest, are those of gymnasium's
    MountainCar-v0 (Moore, PhD thesis, University of Cambridge, 1990). State and observation:
    position and velocity. Actions: 0 pushes left, 1 not at all, 2 right.

    Args:
        gravity: strength of the slope per step^2.
        power: strength of the engine per step^2 (gymnasium's `force`).
        goal: position that ends the episode: at or beyond it, seen from the valley at -pi/6; a
            goal of -1.1 is on the left slope.
        goal_velocity: least speed at the goal, away from the valley.
        goal_reward: reward of the step that reaches the goal: -1 in gymnasium, 0 in the paper's
            library.
        last_reward: reward of the step that meets the time limit: -1 in gymnasium, 0 in the
            paper's library.
    """

    observation_size: ClassVar[int] = 2
    actions: ClassVar[int] = 3
    scale: ClassVar[tuple[float, ...]] = (0.6, 0.035)

    time_limit: int = 200
    positive: ClassVar[tuple[str, ...]] = ("power",)

    gravity: float = 0.0025
    power: float = 0.001
    goal: float = 0.5
    goal_velocity: float = 0.0
    goal_reward: float = -1.0
    last_reward: float = -1.0

    @property
    def worst(self) -> float:
        """Lowest return of an episode."""
        return -(self.time_limit - 1) + self.last_reward

    def start(self, shape: Sequence[int], draw: Generator, dtype: torch.dtype) -> Tensor:
        """Return states at rest near the lowest point, (*shape, 2)."""
        position = uniform(-0.6, -0.4, (*shape, 1), draw, dtype)
        return torch.cat([position, torch.zeros_like(position)], -1)

    def observe(self, state: Tensor) -> Tensor:
        """Return the state itself."""
        return state

    def advance(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return state (..., 2), reward (...) and termination (...) after `action` (...)."""
        position, velocity = state.unbind(-1)
        engine = (action - 1).to(velocity.dtype) * self.power
        velocity = velocity + engine - torch.cos(3 * position) * self.gravity
        velocity = velocity.clamp(-0.07, 0.07)
        position = (position + velocity).clamp(-1.2, 0.6)
        velocity = velocity.masked_fill((position <= -1.2) & (velocity < 0), 0.0)
        side = 1.0 if self.goal >= VALLEY else -1.0
        there = side * position >= side * self.goal
        reached = there & (side * velocity >= self.goal_velocity)
        reward = torch.where(reached, self.goal_reward, torch.full_like(position, -1.0))
        return torch.stack([position, velocity], -1), reward, reached

    def timeout_reward(self, reward: Tensor) -> Tensor:
        """Return `last_reward` throughout."""
        return torch.full_like(reward, self.last_reward)
