"""Acrobot: swing the tip of two links above a line by a motor between them."""

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
class Acrobot(Physics):
    """Raise the tip by one link's length above the pivot: reward -1 a step until then, 0 there.

    The "book" equations, one step of fourth-order Runge-Kutta, and the bounds are those of
    gymnasium's Acrobot-v1 (Sutton, NeurIPS 1996; Sutton and Barto, 2018). State: two angles (rad;
    0 hangs down) and their velocities (rad/s); an agent observes cosine and sine of each angle
    and the velocities. Actions: torque -1, 0, 1 N m.

    Args:
        gravity: m/s^2.
        length_1: length of the first link, m (the second one's does not enter the equations but
            for its centre of mass).
        mass_1, mass_2: kg.
        centre_1, centre_2: from a link's upper end to its centre of mass, m.
        inertia: moment of inertia of each link, kg m^2.
        interval: seconds between two actions.
        start_range: the state starts uniformly in [-start_range, start_range]^4: 0.1 in
            gymnasium, 0.05 in the paper's library.
    """

    observation_size: ClassVar[int] = 6
    actions: ClassVar[int] = 3
    scale: ClassVar[tuple[float, ...]] = (1.0, 1.0, 1.0, 1.0, 3.0, 5.0)
    positive: ClassVar[tuple[str, ...]] = (
        "length_1", "mass_1", "mass_2", "centre_1", "centre_2",
        "inertia", "interval",
    )  # fmt: skip

    gravity: float = 9.8
    length_1: float = 1.0
    mass_1: float = 1.0
    mass_2: float = 1.0
    centre_1: float = 0.5
    centre_2: float = 0.5
    inertia: float = 1.0
    interval: float = 0.2
    start_range: float = 0.1

    @property
    def worst(self) -> float:
        """Lowest return of an episode."""
        return -float(self.time_limit)

    def start(self, shape: Sequence[int], draw: Generator, dtype: torch.dtype) -> Tensor:
        """Return states near hanging at rest, (*shape, 4)."""
        return uniform(-self.start_range, self.start_range, (*shape, 4), draw, dtype)

    def observe(self, state: Tensor) -> Tensor:
        """Return cos and sin of the first angle, of the second, and the velocities, (..., 6)."""
        angles = state[..., :2]
        pairs = torch.stack([torch.cos(angles), torch.sin(angles)], -1).flatten(-2)
        return torch.cat([pairs, state[..., 2:]], -1)

    def advance(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return state (..., 4), reward (...) and termination (...) after `action` (...)."""
        torque, h = (action - 1).to(state.dtype), self.interval
        k1 = self._slope(state, torque)
        k2 = self._slope(state + h / 2 * k1, torque)
        k3 = self._slope(state + h / 2 * k2, torque)
        k4 = self._slope(state + h * k3, torque)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles = torch.remainder(state[..., :2] + math.pi, 2 * math.pi) - math.pi
        fast = (4 * math.pi, 9 * math.pi)
        spins = [state[..., 2 + i].clamp(-most, most) for i, most in enumerate(fast)]
        state = torch.cat([angles, torch.stack(spins, -1)], -1)
        height = -torch.cos(state[..., 0]) - torch.cos(state[..., 0] + state[..., 1])
        reached = height > 1.0
        return state, -(~reached).to(state.dtype), reached

    def _slope(self, state: Tensor, torque: Tensor) -> Tensor:
        """Return the time derivative of the state."""
        first, second, spin_1, spin_2 = state.unbind(-1)
        m1, m2, l1 = self.mass_1, self.mass_2, self.length_1
        c1, c2, i, g = self.centre_1, self.centre_2, self.inertia, self.gravity
        cosine, sine = torch.cos(second), torch.sin(second)
        d1 = m1 * c1**2 + m2 * (l1**2 + c2**2 + 2 * l1 * c2 * cosine) + 2 * i
        d2 = m2 * (c2**2 + l1 * c2 * cosine) + i
        fall_2 = m2 * c2 * g * torch.sin(first + second)
        whirl = m2 * l1 * c2 * sine
        fall_1 = (
            -whirl * spin_2**2 - 2 * whirl * spin_2 * spin_1
            + (m1 * c1 + m2 * l1) * g * torch.sin(first) + fall_2
        )  # fmt: skip
        ratio = d2 / d1
        turn_2 = (torque + ratio * fall_1 - whirl * spin_1**2 - fall_2) / (
            m2 * c2**2 + i - d2 * ratio
        )
        turn_1 = -(d2 * turn_2 + fall_1) / d1
        return torch.stack([spin_1, spin_2, turn_1, turn_2], -1)
