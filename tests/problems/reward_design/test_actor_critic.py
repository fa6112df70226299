"""Actor-critic learners of a library as the inner level, under a reward that is exchanged."""

import json
import logging
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from metaopt.environments import GymnasiumVector, MountainCar
from metaopt.environments.q_network import QNetwork
from metaopt.problems.reward_design import ActorCritic, RewardDesign, variables
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.trainer import Trainer

pytestmark = [
    pytest.mark.slow,  # to import the library takes seconds
    pytest.mark.skipif(find_spec("stable_baselines3") is None, reason="needs the extra"),
]

SMALL = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 8, "batch_size": 8}


def pendulum(steps=20):
    return GymnasiumVector("Pendulum-v1", time_limit=steps, worst=-400, scale=(1, 1, 4))


def small(environment=None, algorithm="SAC", options=SMALL, **others):
    others = {"success": -60, "phase": 24, "inner_seeds": 2, "evaluation_episodes": 3, **others}
    return ActorCritic(environment or pendulum(), algorithm, options, **others)


def test_rewards_are_of_the_true_next_observation():
    """Against a second copy of the environments; all episodes end at their time limit."""
    import gymnasium
    import numpy as np

    from metaopt.problems.reward_design.designed_vector import designed_vector

    environment = GymnasiumVector("Pendulum-v1", time_limit=3, worst=-50, scale=(1, 1, 4))
    read = variables.of(environment)
    reward = parse("n0 - 2 * o2 + 0.1 * square(action) + 5 * terminated", read.names)
    worlds = designed_vector(environment, 2, read, reward)
    worlds.seed(7)
    copies = [gymnasium.make("Pendulum-v1", max_episode_steps=3) for _ in range(2)]
    before = [copy.reset(seed=7 + i)[0] for i, copy in enumerate(copies)]
    assert np.array_equal(worlds.reset(), np.stack(before))
    draw = np.random.default_rng(0)
    for step in range(1, 8):
        actions = draw.uniform(-2, 2, (2, 1)).astype(np.float32)
        _, rewards, dones, _ = worlds.step(actions)
        assert bool(dones.all()) == (step % 3 == 0)
        for i, copy in enumerate(copies):
            after, *_ = copy.step(actions[i])
            expected = after[0] - 2 * before[i][2] + 0.1 * actions[i, 0] ** 2
            assert rewards[i] == pytest.approx(np.clip(expected, -10, 10), abs=1e-5)
            before[i] = copy.reset()[0] if dones[i] else after


def test_trains_again_what_no_process_has_in_memory(caplog):
    trainer = small(inner_seeds=1)
    rewards = [parse(text, trainer.variables.names) for text in ("o0", "-1 * square(n2)")]
    start = trainer.begin(2, 5)
    first = trainer.learn(start, rewards, 6)
    assert start.phases == 0
    assert not caplog.records
    second, again = trainer.learn(first, rewards, 7), trainer.learn(first, rewards, 7)
    assert again == second
    other = small(inner_seeds=1)
    with caplog.at_level(logging.WARNING):
        assert other.learn(first, rewards, 7) == second
    assert "SAC is in no checkpoint" in caplog.text
    assert second.phases == 2
    assert second.environment_steps == 2 * 2 * (24 + 2 * 20)
    assert second.gradients == 2 * (16 + 24)
    _, trainings = trainer.conclude(second, rewards, 1, 8)
    _, others = other.conclude(second, rewards, 1, 8)
    for one, two in zip(trainings, others, strict=True):
        assert one.success == two.success
        assert torch.equal(one.trajectories.actions, two.trajectories.actions)
        assert one.trajectories.actions.shape == (3, 20, 1)
    assert trainings[0].curve["steps"] == [24, 48]
    assert trainings[0].curve != trainings[1].curve


def test_is_the_inner_level_of_reward_design():
    problem = RewardDesign(small(inner_seeds=1), first="up := o0")
    outer = problem.init_outer(torch.Generator())
    inner = problem.init_inner(outer, None, 1)
    for key in (2, 3):
        inner = problem.inner_step(outer, inner, key)
    state = torch.random.get_rng_state()
    feedback = problem.evaluate(outer, inner, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert -1.0 <= feedback.value <= 0.0
    assert feedback.cost["environment_steps"] == 2 * (24 + 40) + 60
    inner = problem.observe(outer, inner, feedback)
    assert inner["history"][0]["reward"] == "up := 1 * o0"


def test_names_of_a_task_that_is_known():
    hill = GymnasiumVector("MountainCarContinuous-v0", 20, -100.0, (0.6, 0.035))
    trainer = small(hill, success="terminated")
    assert list(trainer.variables.names)[:4] == ["p", "v", "height", "energy"]
    assert trainer.variables.names["action"] == "push from -1 (left) to 1 (right)"


def test_says_what_is_missing():
    with pytest.raises(ValueError, match=r"class of Stable-Baselines3, such as SAC.*got 'Sac'"):
        small(algorithm="Sac")
    with pytest.raises(ValueError, match=r"Set problem\.trainer\.success"):
        small(success=None)
    with pytest.raises(ValueError, match="DQN refuses Pendulum-v1 or the options"):
        small(algorithm="DQN")
    with pytest.raises(ValueError, match=r"SAC refuses Pendulum-v1 or the options.*'rate'"):
        small(options={"rate": 1})
    with pytest.raises(ValueError, match=r"vectors of 1 numbers.*reward_design/actor_critic"):
        Trainer(pendulum(), QNetwork, success=-60)
    with pytest.raises(ValueError, match=r"environment of gymnasium; got MountainCar"):
        small(MountainCar())


def test_a_config_chooses_it_and_names_the_observations(tmp_path):
    options = [
        "data@problem.trainer.environment=rollout_length/gymnasium", "inner_steps=1",
        "problem.trainer.environment.id=Pendulum-v1", "problem.trainer.environment.time_limit=20",
        "problem.trainer.environment.observations=[x,y,spin]", "problem.trainer.phase=40",
        "problem.trainer.success=-60", "problem.trainer.inner_seeds=1", "outer_steps=2",
        "problem.trainer.evaluation_episodes=2", "+problem.trainer.options.learning_starts=8",
        "problem.first='slow := -1 * abs(spin2)'", f"hydra.run.dir={tmp_path}/run",
        "model@problem.trainer=reward_design/actor_critic", "problem=reward_design",
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "metaopt", *options], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    history = json.loads((tmp_path / "run" / "rewards.json").read_text())
    assert history[0]["reward"] == "slow := -1 * abs(spin2)"
    assert all(0 <= success <= 1 for entry in history for success in entry["success"])
    assert (tmp_path / "run" / "reward.py").exists()
