"""How good a policy is, and how wrong its model is about that."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.environments import Environment, Transition
from metaopt.environments.acting import CHECK_EVERY

if TYPE_CHECKING:
    from metaopt.problems.rollout_length.problem import RolloutLength
    from metaopt.problems.rollout_length.state import Runs


class Finished(NamedTuple):
    """Episodes that ended in a phase.

    Args:
        number: how many, (R) integers.
        total: sum of their returns, (R).
        latest: the last m of each run, (R, m + 1, d + 2): first observation (in the agent's
            units), return, length. The place m is a spare one.
    """

    number: Tensor
    total: Tensor
    latest: Tensor

    @staticmethod
    def none(runs: int, m: int, observation_size: int, like: Tensor) -> Finished:
        """Return the value at the start of a phase."""
        count = torch.zeros(runs, dtype=torch.long, device=like.device)
        latest = like.new_zeros(runs, m + 1, observation_size + 2)
        return Finished(count, like.new_zeros(runs), latest)

    def with_(self, moved: Transition, first: Tensor) -> Finished:
        """Return the value after a step; `latest` is changed in place."""
        over = (moved.terminated | moved.truncated) & moved.valid
        m = self.latest.shape[1] - 1
        if m:
            place = (self.number.unsqueeze(1) + over.cumsum(1) - 1) % m
            place = torch.where(over, place, m)  # the spare one: no shape may depend on `over`
            outcome = torch.stack([moved.total, moved.age.to(moved.total.dtype)], -1)
            episode = torch.cat([first, outcome], -1)
            self.latest.scatter_(1, place.unsqueeze(-1).expand_as(episode), episode)
        gained = (moved.total * over).sum(1)
        return Finished(self.number + over.sum(1), self.total + gained, self.latest)

    def mean(self, otherwise: Tensor) -> Tensor:
        """Return the mean return of each run (R), `otherwise` where no episode ended."""
        return torch.where(self.number > 0, self.total / self.number.clamp(min=1), otherwise)


def greedy_return(
    problem: RolloutLength, environment: Environment, runs: Runs, episodes: int, draw: Generator
) -> tuple[Tensor, int]:
    """Return the mean return (R) of each run's greedy policy, and the steps that took in all."""
    learners, shape = problem.agent.views(runs.agent), (len(runs.size), episodes)
    returns, lengths = problem.acting.greedy(environment, learners, shape, draw)
    return returns.mean(1), int(lengths.sum())


def model_errors(
    problem: RolloutLength, environment: Environment, runs: Runs, finished: Finished,
    draw: Generator,
) -> Tensor:  # fmt: skip
    """Return the mean of model's - real return, and length, of the same episodes, (R, 2).

    The model starts where the latest real episodes did and follows the current policy until the
    log-odds of an end exceed the planner's, for at most the steps of an episode. A run in which no
    episode ended keeps its last errors.
    """
    agent, model = problem.agent, problem.model
    learners, models = agent.views(runs.agent), model.views(runs.model)
    epsilon = problem.exploration((runs.step + 1) * problem.phase, problem.phase)
    latest = finished.latest[:, :-1]
    observation = latest[..., :-2]
    returns = torch.zeros_like(latest[..., -2])
    lengths = torch.zeros_like(returns)
    going = torch.ones_like(returns)
    for step in range(environment.time_limit):
        action = agent.act(learners, observation, epsilon, draw)
        observation, reward, log_odds = model.predict(models, observation, action)
        returns += going * reward
        lengths += going
        going = going * (log_odds <= problem.planner.end)
        if (step + 1) % CHECK_EVERY == 0 and not bool(going.any()):
            break
    error = torch.stack([returns, lengths], -1) - latest[..., -2:]
    number = finished.number.clamp(max=latest.shape[1]).unsqueeze(1)
    there = torch.arange(latest.shape[1], device=latest.device) < number
    mean = (error * there.unsqueeze(-1)).sum(1) / number.clamp(min=1)
    return torch.where(number > 0, mean, runs.errors)
