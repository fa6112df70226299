"""Environments of gymnasium as Stable-Baselines3 takes them, with the reward exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from metaopt.environments import GymnasiumVector
from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.variables import Variables


class DesignedVector(VecEnvWrapper):  # type: ignore[misc]  # an extra
    """E environments whose reward is r(s, a, s'), clipped, of the true next observation.

    Args:
        venv: the environments.
        variables: of them.
        reward: `None` for the environment's own.
    """

    def __init__(self, venv: Any, variables: Variables, reward: Expression | None) -> None:
        super().__init__(venv)
        self.variables, self.reward = variables, reward
        self.observation: NDArray[Any] = np.zeros(0)
        self.action: NDArray[Any] = np.zeros(0)

    def reset(self) -> Any:
        """Return the first observations."""
        self.observation = self.venv.reset()
        return self.observation.copy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions."""
        self.action = actions
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Return observations, designed rewards, ends and what else is known."""
        observation, rewards, dones, infos = self.venv.step_wait()
        if self.reward is not None:
            rewards = self._rewards(self.reward, observation, dones, infos)
        self.observation = observation.copy()
        return observation, rewards, dones, infos

    def _rewards(
        self, reward: Expression, observation: NDArray[Any], dones: NDArray[Any], infos: Any
    ) -> NDArray[Any]:
        after, terminated = observation.copy(), dones.copy()
        for i in np.flatnonzero(dones):  # the observation is already of the next episode
            after[i] = infos[i]["terminal_observation"]
            terminated[i] = not infos[i].get("TimeLimit.truncated", False)
        values = self.variables(
            torch.as_tensor(self.observation), torch.as_tensor(self.action),
            torch.as_tensor(after), torch.as_tensor(terminated), reward.names,
        )  # fmt: skip
        rewards: NDArray[Any] = reward(values).numpy()
        return rewards.astype(np.float32)


def designed_vector(
    environment: GymnasiumVector, count: int, variables: Variables, reward: Expression | None
) -> DesignedVector:
    """Return `count` environments of the same kind as `environment`."""

    def make() -> Callable[[], Any]:
        return lambda: gymnasium.make(environment.id, **environment.arguments)

    return DesignedVector(DummyVecEnv([make() for _ in range(count)]), variables, reward)
