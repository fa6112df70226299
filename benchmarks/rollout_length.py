"""Cost of an inner run by the size of its batch, and of an update against stable-baselines3's."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.mlp import least_seconds
from metaopt.engine import Engine
from metaopt.engine.random import generator
from metaopt.environments import CartPole
from metaopt.environments.q_network import QNetwork
from metaopt.environments.stacked import denormals_as_zero
from metaopt.environments.transitions import (
    Batch,
    pack,
    pick,
    uniform_index,
)
from metaopt.estimators import Score
from metaopt.optimizers import Constant, Schedule
from metaopt.problems.rollout_length import RolloutLength
from metaopt.problems.rollout_length.world_model import WorldModel

WIDTHS, BATCH, UPDATES, STEPS = (64, 32), 32, 300, 960


def episode(runs: int, length: int = 4, model_steps: int = 120) -> Engine:
    """An episode of R whole inner runs: four phases, then the final score."""
    problem = RolloutLength(
        CartPole(time_limit=200),
        partial(QNetwork, widths=WIDTHS),
        partial(WorldModel, widths=(48, 32), steps=model_steps),
        runs=runs, steps=STEPS, phase=240, batch=BATCH,
        error_episodes=4 if length else 0, evaluation_episodes=100 if length else 1,
    )  # fmt: skip
    return Engine(problem, Score(1), Schedule(Constant(length)), outer_steps=problem.outer_steps)


def whole(runs: int, length: int = 4, model_steps: int = 120) -> int:
    """Run an episode; return the updates of all its runs."""
    engine = episode(runs, length, model_steps)
    for _ in engine:
        pass
    return int(engine.ledger.spent["gradients"])


class Learners:
    """R learners with filled replays, for updates alone."""

    def __init__(self, runs: int) -> None:
        self.agent, self.draw = QNetwork(4, 2, WIDTHS), generator(0)
        self.at = self.agent.views(self.agent.init(runs, self.draw))
        shape = (runs, 1000)
        normal = torch.randn(*shape, 4, generator=self.draw)
        action = torch.randint(2, shape, generator=self.draw)
        ends = (torch.rand(shape, generator=self.draw) < 0.05).float()
        self.rows = pack(Batch(normal, action, torch.ones(shape), normal + 0.1, ends))
        self.size = torch.full((runs, 1), 1000)

    @denormals_as_zero()
    def __call__(self) -> None:
        for _ in range(UPDATES):
            index = uniform_index(self.size, BATCH, self.draw)
            self.agent.update_(self.at, pick(self.rows, index))


def baselines3():
    """The DQN of stable-baselines3 at the same network, batch and updates per step."""
    import gymnasium
    from stable_baselines3 import DQN

    return DQN(
        "MlpPolicy", gymnasium.make("CartPole-v1"), learning_rate=1e-3, batch_size=BATCH,
        learning_starts=32, train_freq=4, gradient_steps=1, target_update_interval=800,
        policy_kwargs={"net_arch": list(WIDTHS)}, seed=0, device="cpu",
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    counts = (1, 4, 16, 64)
    calls = {f"dyna {r}": partial(whole, r) for r in counts}
    calls |= {f"updates {r}": Learners(r) for r in (1, 64)}
    calls["dqn 64"] = partial(whole, 64, 0, 1)
    try:
        agent, learner = baselines3(), baselines3()
    except ImportError:
        print("pip install stable-baselines3 to compare with it")
    else:
        agent.learn(400)
        calls["sb3 learn"] = lambda: learner.learn(STEPS)
        calls["sb3 updates"] = lambda: agent.train(UPDATES, BATCH)
    seconds = least_seconds(calls, repeats=5)
    print(f"an inner run of {STEPS} real steps on CartPole, K = 4, models and final score included")
    for r in counts:
        each, one = seconds[f"dyna {r}"] / r, seconds["dyna 1"]
        print(f"R ={r:4d}{1e3 * each:10.1f} ms per run {each / one:7.3f} of R = 1")
    print(f"updates of a {WIDTHS} network on batches of {BATCH}, per second of CPU time")
    rates = {
        "updates alone, R = 1": UPDATES / seconds["updates 1"],
        "updates alone, R = 64": 64 * UPDATES / seconds["updates 64"],
        "DQN with its environment, R = 64": whole(64, 0, 1) / seconds["dqn 64"],
        "Dyna, all included, R = 64": whole(64) / seconds["dyna 64"],
    }
    if "sb3 learn" in seconds:
        alone, learning = UPDATES / seconds["sb3 updates"], STEPS / 4 / seconds["sb3 learn"]
        print(f"{'stable-baselines3, updates alone':<36}{alone:9.0f}")
        print(f"{'stable-baselines3, DQN.learn':<36}{learning:9.0f}")
        for name, rate in rates.items():
            reference = alone if "alone" in name else learning
            print(f"{name:<36}{rate:9.0f} {rate / reference:7.1f} times stable-baselines3's")
    else:
        for name, rate in rates.items():
            print(f"{name:<36}{rate:9.0f}")


if __name__ == "__main__":
    main()
