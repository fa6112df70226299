"""Acrobot, CartPole and MountainCar as functions of tensors, after gymnasium's classic control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from metaopt.environments.episodes import Physics, uniform

VALLEY = -math.pi / 6
"""Position of MountainCar's lowest point."""


@final
@dataclass(frozen=True, kw_only=True)
class CartPole(Physics):
    """Balance a pole: reward 1 per step until it leans or the cart leaves the track.

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
    success: ClassVar[str] = "truncated"
    signed: ClassVar[tuple[str, ...]] = ("gravity",)

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


@final
@dataclass(frozen=True, kw_only=True)
class MountainCar(Physics):
    """Reach the goal on a slope: reward -1 per step until then.

    The equations and the start, uniform in [-0.6, -0.4] at rest, are those of gymnasium's
    MountainCar-v0 (Moore, PhD thesis, University of Cambridge, 1990). State and observation:
    position and velocity. Actions: 0 pushes left, 1 not at all, 2 right.

    Args:
        gravity: strength of the slope per step^2.
        power: strength of the engine per step^2 (gymnasium's `force`).
        goal: position that ends the episode: at or beyond it, seen from the valley at -pi/6; a
            goal of -1.1 is on the left slope.
        goal_reward: reward of the step that reaches the goal: -1 in gymnasium, 0 in the paper's
            library.
        last_reward: reward of the step that meets the time limit: -1 in gymnasium, 0 in the
            paper's library.
    """

    observation_size: ClassVar[int] = 2
    actions: ClassVar[int] = 3
    scale: ClassVar[tuple[float, ...]] = (0.6, 0.035)

    signed: ClassVar[tuple[str, ...]] = ("gravity", "goal", "goal_reward", "last_reward")

    time_limit: int = 200
    gravity: float = 0.0025
    power: float = 0.001
    goal: float = 0.5
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
        reached = there & (side * velocity >= 0.0)  # on the way out of the valley
        reward = torch.where(reached, self.goal_reward, torch.full_like(position, -1.0))
        return torch.stack([position, velocity], -1), reward, reached

    def timeout_reward(self, reward: Tensor) -> Tensor:
        """Return `last_reward` throughout."""
        return torch.full_like(reward, self.last_reward)


@final
@dataclass(frozen=True, kw_only=True)
class Acrobot(Physics):
    """Raise the tip by one link's length above the pivot: reward -1 per step until then, 0 there.

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
    signed: ClassVar[tuple[str, ...]] = ("gravity", "start_range")

    gravity: float = 9.8
    length_1: float = 1.0
    mass_1: float = 1.0
    mass_2: float = 1.0
    centre_1: float = 0.5
    centre_2: float = 0.5
    inertia: float = 1.0
    interval: float = 0.2
    start_range: float = 0.1

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
