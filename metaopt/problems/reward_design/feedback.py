"""Which feedback the coder is given of a reward, made from its training or its rejection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from metaopt.problems.reward_design.feedback_text import (
    Episode,
    preference_feedback,
    process_feedback,
    trajectory_feedback,
)
from metaopt.problems.reward_design.gate import Verdict
from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.returns import step_rewards, values_of
from metaopt.problems.reward_design.training import Training, Trajectories
from metaopt.problems.reward_design.variables import Variables

ROWS = 10
"""Most steps of an episode that the coder is shown."""


@dataclass(frozen=True)
class Kinds:
    """Which kinds of feedback the coder is given.

    Args:
        process: the training's curve of success, length and every term.
        trajectory: the trained policy's episodes of highest and of lowest return.
        preference: of a reward that fails the test on recorded episodes, the pair that it confuses.
    """

    process: bool = True
    trajectory: bool = True
    preference: bool = True


def training_feedback(
    kinds: Kinds, training: Training, reward: Expression, variables: Variables
) -> str:
    """Return what a training has shown of its reward, nothing where no kind of it is given."""
    parts = []
    if kinds.process:
        curve = {n: training.curve[n] for n in ("steps", "success", "length", "return")}
        parts.append(process_feedback(curve, training.terms))
    episodes = training.trajectories
    if kinds.trajectory and len(episodes.length):
        returns = step_rewards(reward, variables, episodes).sum(1)
        highest, lowest = int(returns.argmax()), int(returns.argmin())
        parts.append(
            trajectory_feedback(
                shown(episodes, highest, float(returns[highest]), variables),
                shown(episodes, lowest, float(returns[lowest]), variables),
            )
        )
    return "\n\n".join(parts)


def rejection_feedback(kinds: Kinds, verdict: Verdict, variables: Variables) -> str:
    """Return why a reward failed the test on recorded episodes, nothing where it is not given."""
    if not kinds.preference:
        return ""
    success, rates = verdict.store.success, verdict.rates
    worst = int(torch.where(success, rates, torch.inf).argmin())
    best = int(torch.where(success, -torch.inf, rates).argmax())
    worst_success, best_failure = (
        shown(verdict.store, i, float(rates[i]), variables) for i in (worst, best)
    )
    return preference_feedback(
        verdict.share, verdict.delta, worst_success, best_failure, verdict.per
    )


def shown(episodes: Trajectories, index: int, total: float, variables: Variables) -> Episode:
    """Return one of the episodes, its quantities before at most `ROWS` evenly spaced steps."""
    one = episodes.select(torch.tensor([index]))
    length = int(one.length)
    steps = np.unique(np.linspace(0, length - 1, ROWS).round().astype(int)).tolist()
    quantities = (*variables.observations, *variables.derived)
    names = [*(q.at(end=False) for q in quantities), *variables.action_names]
    values = values_of(variables, one, names)
    table = {name: values[name][0, steps].tolist() for name in names}
    return Episode(bool(one.success), length, total, {"step": steps, **table})
