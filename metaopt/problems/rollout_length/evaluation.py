"""How good a policy is, and how wrong its model is about that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.dyna.q_network import Open, QNetwork
from metaopt.problems.rollout_length.dyna.world_model import OpenModel, WorldModel
from metaopt.problems.rollout_length.environments import Environment, Transition

LOOK_EVERY = 32
"""Steps between two looks at whether all episodes are over; each look waits for the device."""


class Finished(NamedTuple):
    """Episodes that ended in a phase.

    Args:
        number: how many, (R) integers.
        total: sum of their returns, (R).
        kept: the last m of each run, (R, m + 1, d + 2): first observation (in the agent's units),
            return, length. The last row is a spare place.
    """

    number: Tensor
    total: Tensor
    kept: Tensor

    @staticmethod
    def none(runs: int, keep: int, observation_size: int, like: Tensor) -> Finished:
        """Return the value at the start of a phase."""
        count = torch.zeros(runs, dtype=torch.long, device=like.device)
        return Finished(
            count, like.new_zeros(runs), like.new_zeros(runs, keep + 1, observation_size + 2)
        )

    def with_(self, taken: Transition, first: Tensor) -> Finished:
        """Return the value after a step; `kept` is changed in place."""
        over = (taken.terminated | taken.truncated) & taken.valid
        keep = self.kept.shape[1] - 1
        if keep:
            place = (self.number.unsqueeze(1) + over.cumsum(1) - 1) % keep
            place = torch.where(over, place, keep)
            found = torch.stack([taken.total, taken.age.to(taken.total.dtype)], -1)
            row = torch.cat([first, found], -1)
            self.kept.scatter_(1, place.unsqueeze(-1).expand_as(row), row)
        gained = (taken.total * over).sum(1)
        return Finished(self.number + over.sum(1), self.total + gained, self.kept)

    def mean(self, otherwise: Tensor) -> Tensor:
        """Return the mean return of each run (R), `otherwise` where no episode ended."""
        return torch.where(self.number > 0, self.total / self.number.clamp(min=1), otherwise)


def greedy_return(
    environment: Environment, agent: QNetwork, at: Open, unit: Tensor, episodes: int,
    draw: Generator,
) -> tuple[Tensor, int]:  # fmt: skip
    """Return the mean return (R) of each run's greedy policy, and the steps that took in all.

    Args:
        unit: what observations are divided by, (d).
        episodes: number of episodes of each run.

    An episode that is still open after twice the time limit (a simulator of gymnasium without a
    limit of its own) counts with what it gained and took so far.
    """
    runs = len(at.state.params)
    under_way = environment.begin((runs, episodes), draw, unit.dtype)
    returns = torch.zeros_like(under_way.total)
    lengths, open_ = torch.zeros_like(under_way.age), torch.ones_like(returns, dtype=torch.bool)
    for step in range(2 * environment.time_limit):
        action = agent.act(at, under_way.observation / unit, 0.0, draw)
        under_way, taken = environment.step(under_way, action, draw)
        over = (taken.terminated | taken.truncated) & taken.valid & open_
        returns = torch.where(over, taken.total, returns)
        lengths = torch.where(over, taken.age, lengths)
        open_ &= ~over
        last = step + 1 == environment.time_limit
        if (last or (step + 1) % LOOK_EVERY == 0) and not bool(open_.any()):
            break
    returns = torch.where(open_, under_way.total, returns)
    lengths = torch.where(open_, under_way.age, lengths)
    return returns.mean(1), int(lengths.sum())


def model_errors(
    model: WorldModel, imagined: OpenModel, agent: QNetwork, at: Open, finished: Finished,
    epsilon: float, limit: int, end: float, absolute: bool, otherwise: Tensor, draw: Generator,
) -> Tensor:  # fmt: skip
    """Return the mean of model's - real return, and length, of the same episodes, (R, 2).

    The model starts where the latest real episodes did and follows the current policy until the
    log-odds of an end exceed `end`, for at most `limit` steps.

    Args:
        finished: the real episodes.
        epsilon: probability of a random action.
        absolute: average the absolute differences instead.
        otherwise: what to return for a run in which no episode ended, (R, 2).
    """
    kept = finished.kept[:, :-1]
    seen = kept[..., :-2]
    returns = torch.zeros_like(kept[..., -2])
    lengths = torch.zeros_like(returns)
    going = torch.ones_like(returns)
    for step in range(limit):
        action = agent.act(at, seen, epsilon, draw)
        seen, reward, log_odds = model.predict(imagined, seen, action)
        returns += going * reward
        lengths += going
        going = going * (log_odds <= end)
        if (step + 1) % LOOK_EVERY == 0 and not bool(going.any()):
            break
    wrong = torch.stack([returns, lengths], -1) - kept[..., -2:]
    wrong = wrong.abs() if absolute else wrong
    number = finished.number.clamp(max=kept.shape[1]).unsqueeze(1)
    there = torch.arange(kept.shape[1], device=kept.device) < number
    mean = (wrong * there.unsqueeze(-1)).sum(1) / number.clamp(min=1)
    return torch.where(number > 0, mean, otherwise)


def final_metrics(scores: Tensor, names: Sequence[str], prefix: str = "") -> dict[str, float]:
    """Return mean and standard error over runs of final score and area, test by test.

    Args:
        scores: of n tests, (n, R, T + 1), the final one last; NaN where a test is not over.
        names: of the tests; the first one gives no suffix.
        prefix: what the metrics' names begin with.
    """
    found, runs = {}, scores.shape[1]
    for index, name in enumerate(names):
        of_test = scores[index].double()
        if bool(of_test[:, -1].isnan().any()):
            continue
        suffix = "" if index == 0 else f"_{name}"
        for kind, numbers in (("return", of_test[:, -1]), ("auc", of_test[:, :-1].mean(1))):
            found[f"{prefix}{kind}{suffix}"] = float(numbers.mean())
            if runs > 1:
                found[f"{prefix}{kind}{suffix}_se"] = float(numbers.std() / runs**0.5)
    return found
