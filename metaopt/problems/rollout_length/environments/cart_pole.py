"""CartPole: keep a pole upright on a cart that is pushed left or right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.environments.episodes import Physics, uniform


@final
@dataclass(frozen=True, kw_only=True)
class CartPole(Physics):
    """Balance a pole: reward 1 a step until it leans or the cart leaves the track.

    The equations, the Euler integration and the start, uniform in [-0.05, 0.05]^4, are those of
    gymnasium's CartPole-v1 (Barto, Sutton and Anderson, IEEE Transactions on Systems, Man, and
    Cybernetics 13, 1983). State and observation: position (m), velocity (m/s), angle (rad),
    angular velocity (rad/s). Actions: 0 pushes left, 1 right.

    Args:
        gravity: m/s^2.
        cart_mass, pole_mass: kg.
        half_length: from the pivot to the pole's centre of mass, m.
        force: N.
        interval: seconds between two actions.
        angle_limit: rad; beyond it the episode terminates.
        position_limit: m; beyond it the episode terminates.
    """

    observation_size: ClassVar[int] = 4
    actions: ClassVar[int] = 2
    scale: ClassVar[tuple[float, ...]] = (1.2, 1.0, 0.1, 1.0)
    positive: ClassVar[tuple[str, ...]] = (
        "cart_mass", "pole_mass", "half_length", "force", "interval",
        "angle_limit", "position_limit",
    )  # fmt: skip

    gravity: float = 9.8
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    force: float = 10.0
    interval: float = 0.02
    angle_limit: float = 12 * math.pi / 180
    position_limit: float = 2.4

    @property
    def worst(self) -> float:
        """Lowest return of an episode."""
        return 0.0

    def start(self, shape: Sequence[int], draw: Generator, dtype: torch.dtype) -> Tensor:
        """Return states near the upright rest, (*shape, 4)."""
        return uniform(-0.05, 0.05, (*shape, 4), draw, dtype)

    def observe(self, state: Tensor) -> Tensor:
        """Return the state itself."""
        return state

    def advance(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return state (..., 4), reward (...) and termination (...) after `action` (...)."""
        x, velocity, angle, spin = state.unbind(-1)
        push = (2 * action - 1).to(x.dtype) * self.force
        mass = self.cart_mass + self.pole_mass
        moment = self.pole_mass * self.half_length
        cosine, sine = torch.cos(angle), torch.sin(angle)
        drive = (push + moment * spin**2 * sine) / mass
        turn = (self.gravity * sine - cosine * drive) / (
            self.half_length * (4 / 3 - self.pole_mass * cosine**2 / mass)
        )
        pull = drive - moment * turn * cosine / mass
        change = torch.stack([velocity, pull, spin, turn], -1)
        state = state + self.interval * change
        off = state[..., 0].abs() > self.position_limit
        leaning = state[..., 2].abs() > self.angle_limit
        return state, torch.ones_like(x), off | leaning
