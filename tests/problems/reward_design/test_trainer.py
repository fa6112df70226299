"""Trainings under designed rewards against plain learners and the physics themselves."""

from types import SimpleNamespace

import pytest
import torch
from small_trainings import small_trainer

from metaopt.engine import tree
from metaopt.engine.random import fold, generator
from metaopt.environments import Acrobot, CartPole, MountainCar, Transition
from metaopt.problems.reward_design.demonstrations import CONTROLLERS, Exploited, demonstrations
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.recording import Recorder, recorded, sample
from metaopt.problems.reward_design.returns import step_rewards, term_sums
from metaopt.problems.reward_design.tasks import first_reward, task_of
from metaopt.problems.reward_design.trainer import thinned
from metaopt.problems.reward_design.training import Training

TASKS = [
    MountainCar(time_limit=24), MountainCar(time_limit=24, goal_reward=3.0),
    Acrobot(time_limit=24, gravity=0.1), CartPole(time_limit=24),
]  # fmt: skip


def rewards_of(trainer, *texts):
    return [parse(text, trainer.variables.names) for text in texts]


@pytest.mark.parametrize("task", TASKS, ids=["car", "goal", "acrobot", "pole"])
def test_the_environments_own_reward_trains_the_plain_learner_to_the_bit(task):
    trainer = small_trainer(task)
    reward = rewards_of(trainer, first_reward(task))
    run = trainer.begin(1, 5)
    plain, updates = run, 0
    for phase in range(2):
        run = trainer.learn(run, reward, phase)
        plain = trainer._copied(plain)
        acted = trainer.acting(
            task, trainer.agent.views(plain.agent), plain.experience,
            range(phase * 64, phase * 64 + 64), lambda step: trainer.exploration(step, 64),
            generator(fold(phase, "acting")),
        )  # fmt: skip
        plain, updates = plain._replace(experience=acted.experience), updates + acted.updates
    assert run.gradients == 2 * updates > 0
    assert torch.equal(run.experience.transitions, plain.experience.transitions)
    assert torch.equal(run.agent.params, plain.agent.params)


def test_a_reward_trains_its_own_learners():
    trainer = small_trainer()
    one, other = rewards_of(trainer, "cost := -1", "speed := 10 * abs(v2)")
    start = trainer.begin(2, 0)
    before = tree.clone(start)
    run = trainer.learn(start, [one, other], 0)
    assert torch.equal(start.agent.params, before.agent.params)
    assert start.curves == before.curves == [{}, {}]
    stored = run.experience.transitions[..., :64, -3]
    assert (stored[:2] == -1).all()
    after = run.experience.transitions[2:, :64, 3] * trainer.acting.unit[1]
    torch.testing.assert_close(stored[2:], 10 * after.abs())


def test_what_a_training_leaves_behind():
    trainer = small_trainer(environments=2)
    rewards = rewards_of(trainer, "gain := 100 * (energy2 - energy)\ncost := -1", "2 * terminated")
    run, trainings = trainer.train(rewards, 3, 7, 1)
    lengths = 3 * 2 * 2 * 2 * 24 + 2 * 2 * 4 * 24  # nothing reaches the goal in 24 steps
    assert run.environment_steps == 3 * 4 * 64 + lengths
    for training, reward in zip(trainings, rewards, strict=True):
        assert isinstance(training, Training)
        assert training.reward == reward.text
        assert training.number == 7
        assert training.success == [0.0, 0.0]
        assert training.curve["steps"] == [64.0, 128.0, 192.0]
        sums = sum(torch.tensor(values) for values in training.terms.values())
        torch.testing.assert_close(sums, torch.tensor(training.curve["return"]))
        assert len(training.trajectories.length) == 4
    assert set(trainings[0].terms) == {"gain", "cost"}
    assert trainings[0].terms["cost"] == [-24.0] * 3
    again, repeated = trainer.train(rewards, 3, 7, 1)
    assert torch.equal(again.agent.params, run.agent.params)
    assert repeated[0].curve == trainings[0].curve


def test_a_curve_has_at_most_ten_points():
    curve = {"steps": [float(i + 1) for i in range(25)]}
    assert thinned(curve)["steps"] == [2, 5, 7, 10, 12, 15, 17, 20, 22, 25]
    short = {"steps": [1.0, 2.0]}
    assert thinned(short) == short


@pytest.mark.parametrize("task", [MountainCar(), CartPole(time_limit=60)], ids=["car", "pole"])
def test_recorded_episodes_follow_the_physics(task):
    draw = generator(3)
    wild = recorded(task, lambda x: torch.randint(task.actions, x.shape[:-1], generator=draw),
                    (2, 8), generator(0), task.success)  # fmt: skip
    good = recorded(task, CONTROLLERS[type(task)], (1, 8), generator(0), task.success)
    assert good.success.all()
    assert not wild.success.all()
    for episodes in (wild, good):
        for i, length in enumerate(episodes.length.tolist()):
            state = episodes.observations[i, :length].double()
            after, _, ends = task.advance(state, episodes.actions[i, :length].long())
            torch.testing.assert_close(
                after, episodes.observations[i, 1 : length + 1].double(), atol=0.01, rtol=0.02
            )
            assert bool(episodes.terminated[i]) == (length < task.time_limit)
            assert not ends[: length - 2].any()
            assert (episodes.observations[i, length:] == episodes.observations[i, length]).all()


def test_a_sample_has_half_of_each_kind_where_there_are_as_many():
    draw = generator(0)
    episodes = recorded(CartPole(time_limit=20), lambda x: torch.randint(2, x.shape[:-1],
                        generator=draw), (4, 8), generator(1), "truncated")  # fmt: skip
    won = int(episodes.success.sum())
    assert 6 < won < 26
    assert sample(episodes, 12).success.sum() == 6
    assert len(sample(episodes, 100).length) == 32
    few = episodes.select(episodes.success.cumsum(0) <= 2)
    chosen = sample(few, 8).success
    assert chosen.sum() == min(2, int(few.success.sum()))
    assert len(chosen) == min(8, len(few.length))


def test_observations_that_half_precision_cannot_hold_are_kept_in_single():
    far = {"position_limit": 1e12, "angle_limit": 1e12, "time_limit": 4}
    task = CartPole(force=1e8, **far)
    large = recorded(task, CONTROLLERS[CartPole], (1, 2), generator(0), "truncated")
    assert large.observations.isfinite().all()
    assert large.observations.abs().max() > 1e6
    assert large.observations.dtype == torch.float32
    small = recorded(CartPole(**far), CONTROLLERS[CartPole], (1, 2), generator(0), "truncated")
    assert small.observations.dtype == torch.float16


def test_the_first_reward_is_of_the_environment_whatever_a_success_is():
    assert first_reward(CartPole()) == "survival := 1"
    assert first_reward(Acrobot()) == "cost := -1\ngoal := 1 * terminated"
    assert first_reward(MountainCar()) == "cost := -1"
    assert first_reward(MountainCar(goal_reward=0.0)) == "cost := -1\ngoal := 1 * terminated"
    other = SimpleNamespace(id="Tower-v0")
    with pytest.raises(ValueError, match=r"own reward of Tower-v0 is not known.*problem\.first"):
        first_reward(other)
    assert first_reward(SimpleNamespace(id="CartPole-v1")) == "survival := 1"


def test_the_task_says_when_an_episode_succeeds():
    assert task_of(CartPole(), "truncated").endswith("do for 500 steps; it ends where they do not.")
    by_return = task_of(CartPole(), 150.0)
    assert by_return.startswith("A pole stands on a cart")
    assert by_return.endswith("its return, of the environment's own reward, is at least 150.")
    assert "500 steps" not in by_return
    assert task_of(MountainCar(), "truncated").endswith("succeeds if it lasts for 200 steps.")
    other = SimpleNamespace(id="Tower-v0", time_limit=9)
    assert task_of(other, "terminated").startswith("Control Tower-v0. An episode succeeds if it re")


def test_an_end_of_the_task_in_the_last_step_did_not_last():
    recorder = Recorder((1, 3), CartPole(time_limit=1), "truncated")
    row, yes = torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)
    ended = torch.tensor([[True, False, False]])
    cut = torch.tensor([[True, True, False]])
    zero = row[..., 0]
    recorder(zero, Transition(row, row, zero, ended, cut, yes, zero, zero, row), yes)
    assert recorder.won.tolist() == [[False, True, False]]


def test_success_by_a_least_return():
    task = CartPole(time_limit=30)
    low, high = (
        recorded(task, CONTROLLERS[CartPole], (1, 4), generator(0), bar) for bar in (30.0, 31.0)
    )
    assert low.success.all()
    assert not high.success.any()
    assert small_trainer(task, success=12).success == 12.0


def test_term_sums_are_of_the_steps_made():
    task = MountainCar()
    trainer = small_trainer(task)
    (reward,) = rewards_of(trainer, "a := 2 * p2\nb := 50 * terminated")
    episodes, _ = demonstrations(task, "terminated", 2, 0)
    sums = term_sums(reward, trainer.variables, episodes)
    clipped = step_rewards(reward, trainer.variables, episodes)
    for i, (length, won) in enumerate(
        zip(episodes.length.tolist(), episodes.success.tolist(), strict=True)
    ):
        positions = episodes.observations[i, 1 : length + 1, 0].double()
        assert float(sums["a"][i]) == pytest.approx(2 * float(positions.sum()), rel=1e-5)
        assert float(sums["b"][i]) == 50 * won
        last = min(10.0, 2 * float(positions[-1]) + 50 * won)
        assert float(clipped[i, length - 1]) == pytest.approx(last, rel=1e-5)
        assert not clipped[i, length:].any()
        assert float(sums["return"][i]) == pytest.approx(float(clipped[i].sum()), rel=1e-4)


@pytest.mark.parametrize("task", [MountainCar(), Acrobot(time_limit=200), CartPole(time_limit=200)],
                         ids=["car", "acrobot", "pole"])  # fmt: skip
def test_demonstrations_are_half_successes(task):
    episodes, steps = demonstrations(task, task.success, 3, 0)
    assert episodes.success.tolist() == [True] * 3 + [False] * 3
    assert steps > int(episodes.length.sum())  # 16 are played at a time, of each kind


def test_a_reward_without_success_is_exploited_where_it_gives_more_than_the_controller_gets():
    trainer = small_trainer(MountainCar())
    exploited = Exploited(trainer.environment, "terminated", trainer.variables)
    _, (training,) = trainer.train(rewards_of(trainer, "life := 1"), 1, 1, 0)

    def share(**changes):
        return exploited.share([training._replace(**changes)], rewards_of_text)

    def rewards_of_text(text):
        return rewards_of(trainer, text)[0]

    assert training.success == [0.0, 0.0]
    assert training.curve["return"] == [200.0]
    assert share() == 1.0
    assert share(success=[0.5, 0.5]) == 0.0
    assert share(reward="life := 2") == 0.0  # 200 is less than twice the controller's steps


class TestRefusals:
    def test_options(self):
        with pytest.raises(ValueError, match="phase=64, environments=5"):
            small_trainer(environments=5)
        with pytest.raises(ValueError, match="inner_seeds >= 1; got inner_seeds=0"):
            small_trainer(inner_seeds=0)
        with pytest.raises(ValueError, match=r"success to be terminated.*got 'goal'"):
            small_trainer(success="goal")

    def test_time_limits_that_are_called_ends(self):
        with pytest.raises(ValueError, match="timeout_is_terminal=false"):
            small_trainer(MountainCar(timeout_is_terminal=True))

    def test_demonstrations_that_cannot_be_had(self):
        with pytest.raises(ValueError, match="its controller succeeds 0 times"):
            demonstrations(MountainCar(time_limit=5), "terminated", 2, 0)
