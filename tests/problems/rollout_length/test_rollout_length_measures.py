"""Adaptive rollout length: what is measured of episodes, policies and models."""

import pytest
import torch

from metaopt.engine.random import generator
from metaopt.problems.rollout_length.dyna.q_network import QNetwork
from metaopt.problems.rollout_length.dyna.world_model import WorldModel
from metaopt.problems.rollout_length.environments import CartPole, GymnasiumVector, MountainCar
from metaopt.problems.rollout_length.evaluation import Finished, greedy_return, model_errors
from metaopt.problems.rollout_length.options import Exploration


class TestMeasures:
    def test_finished_episodes(self):
        """Counts, totals and the last m episodes of each run, against lists."""
        task, draw = CartPole(time_limit=25), generator(0)
        episodes = task.begin((3, 4), draw, torch.float32)
        finished = Finished.none(3, 5, 4, torch.zeros(()))
        listed = [[] for _ in range(3)]
        for _ in range(90):
            action = torch.randint(2, (3, 4), generator=draw)
            episodes, taken = task.step(episodes, action, draw)
            finished = finished.with_(taken, taken.first)
            for run, side in (taken.terminated | taken.truncated).nonzero().tolist():
                first = taken.first[run, side].tolist()
                listed[run].append(
                    [*first, float(taken.total[run, side]), int(taken.age[run, side])]
                )
        for run, found in enumerate(listed):
            assert int(finished.number[run]) == len(found) > 5
            assert float(finished.total[run]) == sum(f[-2] for f in found)
            assert sorted(finished.latest[run, :-1].tolist()) == sorted(found[-5:])
        nothing = Finished.none(3, 5, 4, torch.zeros(()))
        assert nothing.mean(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]

    def agent(self, actions, runs, always):
        """Learners whose greedy action is always the same one."""
        agent = QNetwork(4 if actions == 2 else 2, actions, (5,))
        state = agent.init(runs, generator(0))
        state.params.zero_()
        agent.mlp.layers(state.params)[-1].bias[..., always] = 1.0
        return agent, agent.views(state)

    def test_greedy_returns(self):
        agent, at = self.agent(3, 2, 1)
        task, unit = MountainCar(), torch.ones(2)
        found, steps = greedy_return(task, agent, at, unit, 3, generator(0))
        assert found.tolist() == [-200.0] * 2
        assert steps == 2 * 3 * 200
        agent, at = self.agent(2, 3, 0)
        found, steps = greedy_return(CartPole(), agent, at, torch.ones(4), 400, generator(0))
        assert steps == pytest.approx(400 * float(found.sum()))
        task, draw = CartPole(), generator(9)
        state = task.start((4000,), draw, torch.float32)
        alive, length = torch.ones(4000), torch.zeros(4000)
        for _ in range(20):
            state, _, over = task.advance(state, torch.zeros(4000, dtype=torch.long))
            length += alive
            alive *= ~over
        assert not bool(alive.any())
        torch.testing.assert_close(found, length.mean().expand(3), atol=0.15, rtol=0)

    def test_greedy_episodes_that_do_not_end_count_what_they_gained(self):
        """A simulator without a limit of its own, given 30 steps: cars are seen for 60."""
        gymnasium = pytest.importorskip("gymnasium", reason="needs the extra rl")

        def cars(count):
            return gymnasium.make_vec("MountainCar-v0", count, max_episode_steps=-1)

        task = GymnasiumVector(cars, time_limit=30, worst=-30.0)
        agent, at = self.agent(3, 2, 1)
        found, steps = greedy_return(task, agent, at, torch.ones(2), 3, generator(0))
        assert found.tolist() == [-60.0] * 2
        assert steps == 2 * 3 * 60

    def test_errors_of_a_model_that_never_ends(self):
        """It pays 0.5 a step for all 40 steps: the errors are 20 - return and 40 - length."""
        agent, at = self.agent(2, 2, 1)
        model = WorldModel(4, 2, (6,))
        state = model.init(2, generator(0))
        state.params.zero_()
        model._views(state.params)[0][-1].bias[..., 4:] = torch.tensor([0.5, -9.0])
        kept = torch.zeros(2, 4, 6)
        kept[0, :3, 4:] = torch.tensor([[10.0, 11], [26, 43], [30, 31]])
        finished = Finished(torch.tensor([2, 0]), torch.zeros(2), kept)
        otherwise = torch.full((2, 2), 7.0)
        for absolute, expected in ((False, [10 - 6, 29 - 3]), (True, [10 + 6, 29 + 3])):
            found = model_errors(
                model, model.views(state), agent, at, finished, 0.1, 40, 0.0, absolute, otherwise,
                generator(1),
            )  # fmt: skip
            assert found.tolist() == [[x / 2 for x in expected], [7, 7]]

    def test_exploration(self):
        by_phase, given = Exploration(), Exploration(random=10, decay=20, last=0.5)
        assert [by_phase(t, 100) for t in (0, 99, 100, 150, 200, 900)] == pytest.approx(
            [1, 1, 1, 0.55, 0.1, 0.1]
        )
        assert [given(t, 100) for t in (9, 20, 30, 31)] == pytest.approx([1, 0.75, 0.5, 0.5])
        assert Exploration(random=5, decay=0)(5, 100) == pytest.approx(0.1)
