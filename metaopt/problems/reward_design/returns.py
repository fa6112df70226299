"""What a reward gives for recorded episodes."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.training import Trajectories
from metaopt.problems.reward_design.variables import Variables


def step_rewards(reward: Expression, variables: Variables, episodes: Trajectories) -> Tensor:
    """Return what a reward gives for each step, (n, T); 0 after the end of an episode."""
    rewards: Tensor = reward(values_of(variables, episodes, reward.names))
    return rewards.masked_fill(~made(episodes), 0.0)


def term_sums(
    reward: Expression, variables: Variables, episodes: Trajectories
) -> dict[str, Tensor]:
    """Return what each term gives for each episode, its weight included, and "return", (n).

    The return is of clipped rewards; the terms are not clipped.
    """
    values, steps_made = values_of(variables, episodes, reward.names), made(episodes)
    sums = {name: (v * steps_made).sum(1) for name, v in reward.term_values(values).items()}
    return {**sums, "return": (reward(values) * steps_made).sum(1)}


def values_of(
    variables: Variables, episodes: Trajectories, names: Collection[str]
) -> dict[str, Tensor]:
    """Return the variables of each step, (n, T)."""
    observations = episodes.observations.float()
    last = torch.arange(episodes.actions.shape[1]) == (episodes.length - 1).unsqueeze(1)
    terminated = last & episodes.terminated.unsqueeze(1)
    return variables(observations[:, :-1], episodes.actions, observations[:, 1:], terminated, names)


def made(episodes: Trajectories) -> Tensor:
    """Return which steps were made, (n, T)."""
    return torch.arange(episodes.actions.shape[1]) < episodes.length.unsqueeze(1)
