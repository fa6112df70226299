"""What the inner level of adaptive rollout length holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.environments import Environment, Episodes
from metaopt.environments.q_network import QState
from metaopt.problems.rollout_length.planning import Planned
from metaopt.problems.rollout_length.world_model import ModelState


@tree.tagged("rollout_records")
class Records(NamedTuple):
    """Results of the tests, for n tests and T decisions; NaN where there is none yet.

    Args:
        lengths: (n, R, T).
        scores: return in training after each phase, then the final score, (n, R, T + 1).
        updates: updates of the agent, (n, R).
    """

    lengths: Tensor
    scores: Tensor
    updates: Tensor

    @staticmethod
    def none(tests: int, runs: int, decisions: int, device: torch.device) -> Records:
        """Return the value before the first test."""

        def nothing(*shape: int) -> Tensor:
            return torch.full((tests, runs, *shape), torch.nan, device=device)

        return Records(nothing(decisions), nothing(decisions + 1), nothing())


@tree.tagged("rollout_runs")
class Runs(NamedTuple):
    """R runs at the same moment of the same episode.

    Args:
        agent, model: learners and world models.
        transitions: packed: real ones, in the agent's units, then room for synthetic ones and a
            spare place, (R, N + S + 1, w).
        size: number of real transitions of each run, (R, 1).
        episodes: the environments' episodes under way.
        length: rollout length last used, (R).
        score, gain: mean return of the episodes of the last phase (the final score at the end),
            and what it gained on the one before, (R).
        errors: errors of the model's returns and lengths of episodes, (R, 2).
        planned: what the last planning did.
        updates: updates of the agent in this episode, (R).
        records: results of the tests.
        episode: episodes before this one. An "episode" of the outer level is R whole inner runs.
        step: outer step in the episode, 0..T; -1 before the first.
        environment_steps, gradients: cost of the last outer step.
    """

    agent: QState
    model: ModelState
    transitions: Tensor
    size: Tensor
    episodes: Episodes
    length: Tensor
    score: Tensor
    gain: Tensor
    errors: Tensor
    planned: Planned
    updates: Tensor
    records: Records
    episode: int
    step: int
    environment_steps: int
    gradients: int

    def features(self, left: float, cap: int, environment: Environment) -> Tensor:
        """Return what a meta-policy observes of each run, (R, 5), each of size about 1.

        Args:
            left: share of the real steps that remains.
            cap: largest rollout length.
            environment: whose returns and lengths of episodes set the scale.
        """
        limit = environment.time_limit
        size = max(limit, abs(environment.worst))
        returns, lengths = self.errors[:, 0] / size, self.errors[:, 1] / limit
        remains = torch.full_like(self.score, left)
        return torch.stack([remains, self.length / cap, self.score / size, returns, lengths], 1)

    def logged(self) -> dict[str, Tensor]:
        """Return means over runs, for the log."""
        change, reward, end = self.model.loss.mean(0).unbind()
        return {
            "inner/length": self.length.double().mean(),
            "inner/score": self.score.mean(),
            "inner/return_error": self.errors[:, 0].mean(),
            "inner/length_error": self.errors[:, 1].mean(),
            "inner/model_change": change,
            "inner/model_reward": reward,
            "inner/model_end": end,
            "inner/synthetic_steps": self.planned.steps.double().mean(),
        }
