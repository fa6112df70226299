"""Small inner runs on CartPole for the tests of adaptive rollout length."""

from functools import partial

import torch

from metaopt.engine import Engine, tree
from metaopt.engine.random import generator
from metaopt.environments import CartPole
from metaopt.environments.exploration import Exploration
from metaopt.environments.q_network import QNetwork
from metaopt.estimators import Score
from metaopt.optimizers import Constant, Schedule
from metaopt.problems.rollout_length import RolloutLength
from metaopt.problems.rollout_length.planning import Planner, plan
from metaopt.problems.rollout_length.world_model import WorldModel

NEVER = 1 - 1e-12
"""A predicted probability of an end that is not reached."""


def make(environment=None, **changes):
    options = {
        "runs": 4, "steps": 256, "phase": 64, "environments": 4, "evaluation_episodes": 3,
        "planner": Planner(cap=8, end_probability=NEVER), "exploration": Exploration(last=0.2),
    }  # fmt: skip
    return RolloutLength(
        environment or CartPole(time_limit=60),
        partial(QNetwork, widths=(12, 8), target_update_every=20),
        partial(WorldModel, widths=(12, 8), steps=15),
        **{**options, **changes},
    )


LIGHT = CartPole(time_limit=60, variants={"light": {"gravity": 1.0}})


def played(problem, lengths=0, steps=1):
    """The runs after some outer steps with the same lengths."""
    inner = problem.init_inner(lengths, None, 1)
    for key in range(steps):
        inner = problem.inner_step(lengths, inner, key)
    return inner


def planned(problem, inner, lengths, key=7):
    """A copy of the runs after planning, and what was planned."""
    inner = tree.clone(inner)
    lengths = torch.as_tensor(lengths).masked_fill(problem.real, 0)
    plans = plan(problem, inner, lengths, generator(key))
    return inner, plans


def run(problem, steps=None, lengths=2):
    """The engine at the end of a run with the same lengths, and what was fed back."""
    optimizer = Schedule(Constant(lengths))
    engine = Engine(problem, Score(1), optimizer, outer_steps=steps or problem.outer_steps)
    return engine, [feedback for _, feedback in engine]
