"""Variables of a reward against gymnasium's own environments, and energies against physics."""

import dataclasses
import math

import pytest
import torch

from metaopt.engine.random import generator
from metaopt.environments import Acrobot, CartPole, GymnasiumVector, MountainCar
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.language import parse

TASKS = {"MountainCar-v0": MountainCar(), "CartPole-v1": CartPole(), "Acrobot-v1": Acrobot()}


def truths(name, state):
    """Quantities from gymnasium's state, by formulas of its documentation and its rendering."""
    if name == "MountainCar-v0":
        p, v = state
        return {"p": p, "v": v, "height": math.sin(3 * p)}
    if name == "CartPole-v1":
        p, v, angle, spin = state
        return {"p": p, "v": v, "angle": angle, "spin": spin, "upright": math.cos(angle)}
    a, b, spin_a, spin_b = state
    return {
        "cos_a": math.cos(a), "sin_a": math.sin(a), "cos_b": math.cos(b), "sin_b": math.sin(b),
        "spin_a": spin_a, "spin_b": spin_b, "height": -math.cos(a) - math.cos(a + b),
    }  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_values_are_those_of_gymnasium(name):
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra rl")
    env = gymnasium.make(name, disable_env_checker=True)
    read, draw = variables.of(TASKS[name]), generator(5)
    before, _ = env.reset(seed=3)
    for _ in range(60):
        state = [float(x) for x in env.unwrapped.state]
        action = int(torch.randint(TASKS[name].actions, (), generator=draw))
        after, _, terminated, _, _ = env.step(action)
        values = read(
            torch.tensor(before)[None, None], torch.tensor([[action]]),
            torch.tensor(after)[None, None], torch.tensor([[terminated]]),
        )  # fmt: skip
        assert set(values) == set(read.names)
        assert float(values["action"]) == action
        assert float(values["terminated"]) == terminated
        later = truths(name, [float(x) for x in env.unwrapped.state])
        for key, truth in truths(name, state).items():
            assert values[key].shape == (1, 1)
            assert float(values[key]) == pytest.approx(truth, abs=1e-5)
            assert float(values[f"{key}2"]) == pytest.approx(later[key], abs=1e-5)
        if terminated:
            break
        before = after


@pytest.mark.parametrize(
    ("task", "state", "action", "speeds"),
    [
        (MountainCar(gravity=2.5e-5, power=1e-12), (-0.9, 0.0), 1, [1]),
        (CartPole(interval=1e-4, force=1e-9), (0.1, 0.5, 0.15, -0.7), 0, [1, 3]),
        (Acrobot(interval=5e-3), (1.0, -0.5, 0.3, 2.0), 1, [4, 5]),
    ],
)
def test_energy_is_conserved_where_nothing_pushes(task, state, action, speeds):
    """Kinetic and potential energy exchange 100 times what short steps lose."""
    read, actions = variables.of(task), torch.full((200,), action)
    states = [torch.tensor(state, dtype=torch.float64)]
    for step in range(200):
        states.append(task.advance(states[-1], actions[step])[0])
    course = task.observe(torch.stack(states))
    at_rest = course.index_fill(-1, torch.tensor(speeds), 0.0)
    still = torch.zeros(200, dtype=torch.bool)
    total = read(course[:-1], actions, course[1:], still)["energy"]
    potential = read(at_rest[:-1], actions, at_rest[1:], still)["energy"]
    exchanged = potential.max() - potential.min()
    assert (total - total[0]).abs().max() < 0.01 * exchanged


def test_a_push_along_the_velocity_gains_energy():
    task = MountainCar()
    read = variables.of(task)
    state = torch.tensor([[-0.5, 0.02], [-0.5, -0.02]], dtype=torch.float64)
    for action, sign in ((2, 1), (0, -1)):
        after, _, ended = task.advance(state, torch.full((2,), action))
        values = read(state, torch.full((2,), action), after, ended)
        gain = (values["energy2"] - values["energy"]) * sign
        assert gain[0] > 1e-5
        assert gain[1] < -1e-5


def test_parameters_are_in_the_formulas():
    heavier = dataclasses.replace(MountainCar(), gravity=0.003)
    assert variables.of(heavier).names["energy"].startswith("0.5 * square(v) + 0.001 * sin(3 * p)")


def test_a_time_limit_is_no_termination():
    task, draw = MountainCar(time_limit=3), generator(0)
    reward, read = parse("terminated", variables.of(task).names), variables.of(task)
    episodes = task.begin((1, 2), draw, torch.float32)
    for step in range(3):
        action = torch.ones(1, 2, dtype=torch.long)
        episodes, moved = task.step(episodes, action, draw)
        values = read(moved.observation, action, moved.next_observation, moved.terminated)
        assert bool(moved.truncated.all()) == (step == 2)
        assert torch.equal(reward(values), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="timeout_is_terminal=false"):
        variables.of(MountainCar(timeout_is_terminal=True))


def test_only_the_names_asked_for():
    read = variables.of(MountainCar())
    zero = torch.zeros(1, 2, 2)
    values = read(zero, zero[..., 0], zero, zero[..., 0], names={"energy2"})
    assert "energy2" in values
    assert "energy" not in values


def test_other_environments_have_numbered_observations():
    pytest.importorskip("gymnasium", reason="needs the extra rl")
    assert variables.of(GymnasiumVector("MountainCar-v0")) == variables.of(MountainCar())
    read = variables.unnamed(3, action_size=2)
    assert list(read.names) == [
        "o0", "o1", "o2", "n0", "n1", "n2", "action0", "action1", "terminated",
    ]  # fmt: skip
    draw = generator(0)
    before, after, action = (torch.rand(2, 4, n, generator=draw) for n in (3, 3, 2))
    values = read(before, action, after, torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(values["o1"], before[..., 1])
    assert torch.equal(values["n2"], after[..., 2])
    assert torch.equal(values["action1"], action[..., 1])
    reward = parse("n0 - o0 - 0.1 * square(action1)", read.names)
    assert torch.allclose(
        reward(values), after[..., 0] - before[..., 0] - 0.1 * action[..., 1] ** 2
    )


class TestNamed:
    def test_a_name_of_each_observation_before_and_after_a_step(self):
        read = variables.named(["x", "speed"])
        assert list(read.names) == ["x", "speed", "x2", "speed2", "action", "terminated"]
        values = read(
            torch.tensor([[1.0, 2.0]]), torch.tensor([0]), torch.tensor([[3.0, 4.0]]),
            torch.tensor([False]),
        )  # fmt: skip
        assert [float(values[name]) for name in ("x", "speed", "x2", "speed2")] == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("names", "wrong"),
        [
            (["x", "sin"], "sin"), (["x", "x"], "x"), (["x", "x2"], "x2"), (["x y"], "x y"),
            (["terminated"], "terminated"), (["lambda"], "lambda"), (["__class__"], "__class__"),
        ],
    )  # fmt: skip
    def test_refuses_what_a_reward_cannot_read(self, names, wrong):
        with pytest.raises(ValueError, match=f"observations must be different.*change {wrong}\\."):
            variables.named(names)
