"""Physics against gymnasium's, step for step; episodes, their ends and their starts."""

import dataclasses
import math

import pytest
import torch

from metaopt.engine.random import generator
from metaopt.environments import (
    Acrobot,
    CartPole,
    GymnasiumVector,
    MountainCar,
)

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra rl")

TASKS = {
    "CartPole-v1": CartPole(),
    "MountainCar-v0": MountainCar(),
    "Acrobot-v1": Acrobot(),
}


def varied(task, changes):
    return dataclasses.replace(task, variants={"other": changes}).variant("other")


def put(env, state):
    env.unwrapped.state = state.numpy().copy()


def state_of(env):
    return torch.tensor([float(x) for x in env.unwrapped.state], dtype=torch.float64)


def swing(state, actions):
    """Push the way it moves: reaches the goal of MountainCar and of Acrobot."""
    return (actions - 1) * int(state[-1] >= 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_physics_equal_gymnasium(name):
    """1,000 steps of a random policy and of one that swings, in one batch."""
    task, draw = TASKS[name], generator(3)
    envs = [gymnasium.make(name, disable_env_checker=True) for _ in range(2)]
    assert envs[0].spec.max_episode_steps == task.time_limit
    episodes = task.begin((2,), draw, torch.float64)
    for env, state in zip(envs, episodes.state, strict=True):
        env.reset(seed=0)
        put(env, state)
    ends, ours, theirs = [set(), set()], [], []
    for step in range(1000):
        if step % 100 == 0:  # Acrobot is chaotic: rounding errors grow tenfold every 40 steps
            for env, state in zip(envs, episodes.state, strict=True):
                put(env, state)
        chance = int(torch.randint(task.actions, (), generator=draw))
        actions = [chance, swing(episodes.state[1], task.actions)]
        episodes, moved = task.step(episodes, torch.tensor(actions), draw)
        for i, env in enumerate(envs):
            observation, reward, terminated, truncated, _ = env.step(actions[i])
            ours.append(moved.next_observation[i])
            theirs.append(torch.from_numpy(observation).double())
            assert float(moved.reward[i]) == reward
            assert (bool(moved.terminated[i]), bool(moved.truncated[i])) == (terminated, truncated)
            if terminated or truncated:
                ends[i].add("terminated" if terminated else "truncated")
                assert float(episodes.age[i]) == float(episodes.total[i]) == 0
                env.reset()
                put(env, episodes.state[i])
            else:
                ours.append(episodes.state[i])
                theirs.append(state_of(env))
    torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), rtol=1e-6, atol=1e-6)
    assert ("terminated" if name == "CartPole-v1" else "truncated") in ends[0]
    assert "terminated" in ends[1]


@pytest.mark.parametrize("name", TASKS)
def test_episodes_start_where_gymnasiums_do(name):
    states = TASKS[name].begin((4000,), generator(0), torch.float64).state
    env = gymnasium.make(name, disable_env_checker=True)
    starts = []
    for seed in range(600):
        env.reset(seed=seed)
        starts.append(state_of(env))
    theirs = torch.stack(starts)
    width = (theirs.amax(0) - theirs.amin(0)).clamp(min=1e-9)
    assert ((states.amax(0) - theirs.amax(0)).abs() / width).max() < 0.02
    assert ((states.amin(0) - theirs.amin(0)).abs() / width).max() < 0.02
    assert ((states.mean(0) - theirs.mean(0)).abs() / width).max() < 0.05


@pytest.mark.parametrize(
    ("name", "changes", "attributes"),
    [
        ("CartPole-v1", {"gravity": 12.0, "half_length": 0.8}, {"gravity": 12.0, "length": 0.8}),
        ("MountainCar-v0", {"gravity": 0.003}, {"gravity": 0.003}),
        (
            "Acrobot-v1",
            {"length_1": 1.2, "mass_1": 1.2, "mass_2": 0.8},
            {"LINK_LENGTH_1": 1.2, "LINK_MASS_1": 1.2, "LINK_MASS_2": 0.8},
        ),
    ],
)
def test_parameters_mean_what_gymnasiums_do(name, changes, attributes):
    task, env, draw = (
        varied(TASKS[name], changes),
        gymnasium.make(name, disable_env_checker=True),
        generator(1),
    )
    for attribute, value in attributes.items():
        setattr(env.unwrapped, attribute, value)
    if name == "CartPole-v1":
        env.unwrapped.polemass_length = env.unwrapped.masspole * env.unwrapped.length
    env.reset(seed=0)
    state = task.start((), draw, torch.float64)
    put(env, state)
    for _ in range(8):
        action = int(torch.randint(task.actions, (), generator=draw))
        observation, *_ = env.step(action)
        state, _, _ = task.advance(state, torch.tensor(action))
        expected = torch.tensor(observation, dtype=torch.float64)
        torch.testing.assert_close(task.observe(state), expected, rtol=1e-6, atol=1e-6)


def test_gravity_pulls_acrobot_as_gymnasiums_scaled():
    """Twice the gravity is two seconds of half the time scale: theta'' scales with g."""
    state = torch.tensor([0.3, -0.2, 0.0, 0.0], dtype=torch.float64)
    idle = torch.tensor(1)
    once, _, _ = Acrobot(gravity=9.8, interval=1e-3).advance(state, idle)
    twice, _, _ = Acrobot(gravity=19.6, interval=1e-3).advance(state, idle)
    torch.testing.assert_close(twice[2:], 2 * once[2:], rtol=1e-5, atol=0)


def test_goal_on_the_left_slope():
    task = MountainCar(goal=-1.1)
    moving = torch.tensor([[-1.09, -0.03], [-1.09, 0.03], [0.4, 0.05], [-1.19, -0.05]])
    _, _, reached = task.advance(moving, torch.ones(4, dtype=torch.long))
    assert reached.tolist() == [True, False, False, True]


def test_library_of_the_paper_ends_at_the_time_limit_with_reward_zero():
    options = {"time_limit": 5, "goal_reward": 0.0, "last_reward": 0.0}
    task = MountainCar(timeout_is_terminal=True, **options)
    draw = generator(0)
    episodes = task.begin((2,), draw, torch.float32)
    rewards, ends = [], []
    for _ in range(5):
        episodes, moved = task.step(episodes, torch.tensor([1, 1]), draw)
        rewards.append(moved.reward[0].item())
        ends.append((bool(moved.terminated[0]), bool(moved.truncated[0])))
    assert rewards == [-1, -1, -1, -1, 0]
    assert ends == [(False, False)] * 4 + [(True, False)]
    assert moved.total.tolist() == [task.worst] * 2 == [-4, -4]


def test_episodes_that_end_do_not_touch_the_others():
    task, draw = CartPole(time_limit=30), generator(0)
    episodes = task.begin((3, 4), draw, torch.float32)
    counted = torch.zeros(3, 4)
    for _ in range(60):
        before = episodes
        episodes, moved = task.step(episodes, torch.ones(3, 4, dtype=torch.long), draw)
        counted += 1
        over = moved.terminated | moved.truncated
        assert torch.equal(moved.age.float(), counted)
        assert torch.equal(moved.total, counted)
        assert torch.equal(moved.first, before.first)
        going = ~over
        assert torch.equal(episodes.state[going], moved.next_observation[going])
        assert torch.equal(episodes.first[over], episodes.state[over])
        assert bool((episodes.state[over].abs() <= 0.05).all())
        counted[over] = 0
    assert int((episodes.age < 30).sum()) == 12


def test_vector_environments_report_whole_episodes():
    """Every valid transition follows the physics; resets are neither counted nor learned from."""
    task, physics, draw = GymnasiumVector("CartPole-v1", worst=0.0), CartPole(), generator(0)
    episodes = task.begin((2, 3), draw, torch.float64)
    skipped, lengths = 0, torch.zeros(2, 3)
    ended = 0
    for _ in range(80):
        action = torch.randint(2, (2, 3), generator=draw)
        episodes, moved = task.step(episodes, action, draw)
        expected, _, _ = physics.advance(moved.observation, action)
        valid = moved.valid
        torch.testing.assert_close(
            moved.next_observation[valid], expected[valid], rtol=1e-5, atol=1e-5
        )
        lengths += valid
        assert torch.equal(moved.age[valid], lengths[valid].long())
        assert torch.equal(moved.total[valid], lengths[valid].double())
        assert not bool((moved.terminated & ~valid).any())
        assert bool((moved.first.abs() <= 0.05).all())
        lengths[moved.terminated] = 0
        ended += int(moved.terminated.sum())
        skipped += int((~valid).sum())
    assert ended > 5
    assert ended - 6 <= skipped <= ended


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_vector_environments_that_reset_otherwise_are_refused(mode):
    reset = gymnasium.vector.AutoresetMode[mode]
    arguments = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": reset}}
    with pytest.raises(ValueError, match=f"autoreset_mode={mode}. Make it with NEXT_STEP"):
        GymnasiumVector("CartPole-v1", worst=0.0, arguments=arguments)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CartPole(time_limit=0), "time_limit >= 1; got time_limit=0"),
        (lambda: CartPole(variants={"a": {"gravty": 3.0}}), "no parameters \\['gravty'\\]"),
        (lambda: CartPole(variants={"a": {}}).variant("b"), "no variant 'b'; its variants are a"),
        (
            lambda: GymnasiumVector("CartPole-v1", worst=0.0, scale=[1.0]),
            "needs 4 numbers as scale",
        ),
    ],
)
def test_bad_arguments_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_worst_returns():
    assert CartPole().worst == 0
    assert MountainCar().worst == -200
    assert MountainCar(last_reward=0.0).worst == -199
    assert Acrobot(time_limit=200).worst == -200
    assert math.isclose(CartPole().angle_limit, 12 * 2 * math.pi / 360)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [(CartPole, {"cart_mass": -0.1}), (CartPole, {"interval": 0.0}), (MountainCar, {"power": 0.0}),
     (CartPole, {"variants": {"odd": {"force": -1.0}}})],
)  # fmt: skip
def test_impossible_physics_are_refused(make, wrong):
    with pytest.raises(ValueError, match="> 0; got "):
        make(**wrong)


@pytest.mark.parametrize("value", ["abc", None, math.nan, -math.inf, True])
@pytest.mark.parametrize(
    ("make", "name"), [(CartPole, "gravity"), (MountainCar, "goal"), (Acrobot, "inertia")]
)
def test_parameters_that_are_no_finite_number_are_refused(make, name, value):
    with pytest.raises(ValueError, match=f"{name} to be a finite number; got {value!r}"):
        make(**{name: value})
    with pytest.raises(ValueError, match=f"{name} to be .* the variant 'odd'"):
        make(variants={"plain": {}, "odd": {name: value}})


def test_a_variant_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"variant 'odd' is None\. Use {} to change nothing"):
        CartPole(variants={"odd": None})


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
@pytest.mark.parametrize(("asked", "limit"), [(None, 500), (40, 40)])
def test_time_limits_are_the_simulators_own_or_those_asked_for(mode, asked, limit):
    arguments = {"vectorization_mode": mode}
    task = GymnasiumVector("CartPole-v1", asked, 0.0, [1.0] * 4, arguments)
    assert task.time_limit == limit


def test_an_environment_without_a_time_limit_needs_one():
    with pytest.raises(ValueError, match=r"time_limit=500, the most steps"):
        GymnasiumVector("MountainCar-v0", arguments={"max_episode_steps": -1})


def test_environments_of_gymnasium_by_id():
    """With limit, lowest return and magnitudes measured where they are not given."""
    environment = GymnasiumVector("CartPole-v1")
    assert (environment.time_limit, environment.observation_size, environment.actions) == (
        500,
        4,
        2,
    )
    assert 8 <= environment.worst < 30
    assert all(0 < size < 2 for size in environment.scale)
    assert environment.scale == GymnasiumVector("CartPole-v1").scale
    given = GymnasiumVector("MountainCar-v0", 50, -50.0, (1.0, 2.0))
    assert (given.time_limit, given.worst, given.scale) == (50, -50.0, (1.0, 2.0))
    assert GymnasiumVector("MountainCar-v0", 20).worst == -20


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("CartPol-v1",), r"make id=CartPol-v1: .* Ids like it are CartPole-v1"),
        (("nowhere:Own-v0",), "cannot make id=nowhere:Own-v0"),
        (("Blackjack-v1", 9), "needs flat observations and actions that are discrete or a vector"),
    ],
)
def test_wrong_ids_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        GymnasiumVector(*arguments)


def test_vectors_of_actions():
    environment = GymnasiumVector("Pendulum-v1", 20, -400.0, (1.0, 1.0, 4.0))
    assert environment.action_size == 1
    with pytest.raises(ValueError, match=r"Pendulum-v1 has vectors of 1 numbers as actions"):
        _ = environment.actions
    draw = generator(0)
    episodes = environment.begin((2, 3), draw, torch.float64)
    actions = environment.random_action((2, 3), draw)
    assert actions.shape == (2, 3, 1)
    assert 0.1 < float(actions.abs().max()) <= 2
    _, moved = environment.step(episodes, actions, draw)
    angle = torch.atan2(episodes.observation[..., 1], episodes.observation[..., 0])
    speed = episodes.observation[..., 2]
    cost = angle**2 + 0.1 * speed**2 + 0.001 * actions[..., 0] ** 2
    assert torch.allclose(moved.reward, -cost, atol=1e-5)
