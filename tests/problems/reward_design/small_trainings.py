"""Trainings of a second or less, and episodes by hand."""

from functools import partial

import torch

from metaopt.environments import MountainCar
from metaopt.environments.q_network import QNetwork
from metaopt.problems.reward_design.trainer import Trainer
from metaopt.problems.reward_design.training import Training, Trajectories


def small_trainer(environment=None, **options):
    """Return a trainer of two learners of each reward on short episodes of MountainCar."""
    settings = {
        "phase": 64, "inner_seeds": 2, "environments": 4, "curve_episodes": 2,
        "evaluation_episodes": 4, "recorded": 4,
    }  # fmt: skip
    task = MountainCar(time_limit=24) if environment is None else environment
    return Trainer(task, partial(QNetwork, widths=[8]), **{**settings, **options})


def episodes_of(success, length=None, steps=4):
    """Return episodes whose first observation is their number, in all of their steps."""
    count = len(success)
    success = torch.tensor(success)
    numbers = torch.arange(count, dtype=torch.float16).view(-1, 1, 1).expand(count, steps + 1, 2)
    lengths = torch.tensor([steps] * count if length is None else length)
    actions = torch.zeros(count, steps, dtype=torch.uint8)
    return Trajectories(numbers.clone(), actions, lengths, success, success.clone())


def training_of(success, number=1, reward="cost := -1"):
    """Return a training with the episodes of `episodes_of`."""
    share = sum(success) / max(len(success), 1)
    curve = {"steps": [1.0], "success": [share], "length": [4.0], "return": [-4.0]}
    return Training(reward, number, [share], curve, episodes_of(success))
