"""A delivered reward: its files, run without metaopt, against what torch evaluates."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from metaopt.engine.random import generator
from metaopt.environments import Acrobot, CartPole, MountainCar
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.bank import mountain_car_rewards
from metaopt.problems.reward_design.export import function_source, write_reward
from metaopt.problems.reward_design.guessing import guess
from metaopt.problems.reward_design.language import parse, parse_python

TASKS = {"mountain_car": MountainCar(), "cart_pole": CartPole(), "acrobot": Acrobot()}
ALONE = """
import importlib.util, json, sys
try:
    import metaopt
except ImportError:
    pass
else:
    raise SystemExit("metaopt is importable")
rows = json.load(open(sys.argv[1]))
values = []
for path in sys.argv[2:]:
    spec = importlib.util.spec_from_file_location("reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values.append([module.step_reward(*row) for row in rows])
json.dump(values, sys.stdout)
"""


def transitions(task, count):
    """Steps of random actions, with ends of both kinds among them."""
    draw = generator(4)
    episodes = task.begin((20,), draw, torch.float64)
    steps = []
    for _ in range(count // 20):
        action = torch.randint(task.actions, (20,), generator=draw)
        episodes, moved = task.step(episodes, action, draw)
        steps.append((moved.observation, action, moved.next_observation, moved.terminated))
    return tuple(torch.cat(parts) for parts in zip(*steps, strict=True))


def run_alone(folder, paths, steps):
    """The rewards of all steps by an isolated Python without packages."""
    rows = folder / "rows.json"
    rows.write_text(
        json.dumps([list(row) for row in zip(*(x.tolist() for x in steps), strict=True)])
    )
    command = [sys.executable, "-I", "-S", "-c", ALONE, rows, *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    return torch.tensor(json.loads(done.stdout), dtype=torch.float64)


def rewards_of(name, names):
    if name == "mountain_car":
        return list(mountain_car_rewards().values())
    derived = "upright" if name == "cart_pole" else "height"
    return [
        f"gain := 0.3 * (energy2 - energy)\n{derived} := 2 * {derived}2\n3 * terminated",
        f"min := clip({derived}, -0.5, 0.5) * max(energy, action, 0)\nmin_ := abs(-energy2)",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_python_files_run_without_metaopt(name, tmp_path):
    task = TASKS[name]
    read = variables.of(task)
    steps = transitions(task, 1000)
    texts = rewards_of(name, read.names)
    rewards = [parse(text, read.names) for text in texts]
    draw = np.random.default_rng(0)
    rewards += [parse(guess(list(read.names), draw), read.names) for _ in range(20)]
    paths = []
    for number, reward in enumerate(rewards):
        text, python = write_reward(reward, read, tmp_path / str(number))
        assert parse(text.read_text(), read.names) == reward
        paths.append(python)
    expected = torch.stack([reward(read(*steps)) for reward in rewards])
    assert expected.std(1).max() > 0.1
    assert (run_alone(tmp_path, paths, steps) - expected).abs().max() < 1e-12


def test_the_function_is_a_reward_that_the_language_reads():
    read = variables.of(MountainCar())
    for text in ("height := 3 * height2 * height\nmin := -2", "gain := 500 * (energy2 - energy)"):
        reward = parse(text, read.names)
        listed = sorted(reward.names)
        again = parse_python(function_source(reward, listed), read.names)
        assert [term.body for term in again.terms] == [term.body for term in reward.terms]
        assert [term.weight for term in again.terms] == [term.weight for term in reward.terms]
        assert again.terms[0].name == reward.terms[0].name


def test_a_vector_of_actions_and_numbered_observations(tmp_path):
    read = variables.unnamed(2, action_size=2)
    reward = parse("n1 - o0 - 0.1 * square(action1)\n2 * terminated", read.names)
    _, python = write_reward(reward, read, tmp_path)
    draw = generator(0)
    before, after, action = (
        torch.rand(9, 2, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    steps = (before, action, after, torch.arange(9) % 2 == 0)
    values = run_alone(tmp_path, [python], steps)[0]
    assert torch.allclose(values, reward(read(*steps)), atol=1e-12, rtol=0)
