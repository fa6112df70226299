"""Adaptive rollout length: what is measured of episodes, policies and models."""

import pytest
import torch
from small_runs import make

from metaopt.engine.random import generator
from metaopt.environments import CartPole, GymnasiumVector, MountainCar
from metaopt.environments.exploration import Exploration
from metaopt.problems.rollout_length.evaluation import Finished, greedy_return, model_errors
from metaopt.problems.rollout_length.planning import Planner


class TestMeasures:
    def test_finished_episodes(self):
        """Counts, totals and the last m episodes of each run, against lists."""
        task, draw = CartPole(time_limit=25), generator(0)
        episodes = task.begin((3, 4), draw, torch.float32)
        finished = Finished.none(3, 5, 4, torch.zeros(()))
        listed = [[] for _ in range(3)]
        for _ in range(90):
            action = torch.randint(2, (3, 4), generator=draw)
            episodes, moved = task.step(episodes, action, draw)
            finished = finished.with_(moved, moved.first)
            for run, side in (moved.terminated | moved.truncated).nonzero().tolist():
                first = moved.first[run, side].tolist()
                listed[run].append(
                    [*first, float(moved.total[run, side]), int(moved.age[run, side])]
                )
        for run, ended in enumerate(listed):
            assert int(finished.number[run]) == len(ended) > 5
            assert float(finished.total[run]) == sum(e[-2] for e in ended)
            assert sorted(finished.latest[run, :-1].tolist()) == sorted(ended[-5:])
        nothing = Finished.none(3, 5, 4, torch.zeros(()))
        assert nothing.mean(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]

    def made(self, task, runs, always, **changes):
        """A problem, and runs whose greedy action is always the same one."""
        problem = make(task, runs=runs, planner=Planner(cap=8), **changes)
        inner = problem.init_inner(0, None, 0)
        inner.agent.params.zero_()
        problem.agent.mlp.layers(inner.agent.params)[-1].bias[..., always] = 1.0
        return problem, inner

    def test_greedy_returns(self):
        task = MountainCar()
        problem, inner = self.made(task, 2, 1)
        returns, steps = greedy_return(problem, task, inner, 3, generator(0))
        assert returns.tolist() == [-200.0] * 2
        assert steps == 2 * 3 * 200
        problem, inner = self.made(CartPole(), 3, 0)
        returns, steps = greedy_return(problem, CartPole(), inner, 400, generator(0))
        assert steps == pytest.approx(400 * float(returns.sum()))
        task, draw = CartPole(), generator(9)
        state = task.start((4000,), draw, torch.float32)
        alive, length = torch.ones(4000), torch.zeros(4000)
        for _ in range(20):
            state, _, over = task.advance(state, torch.zeros(4000, dtype=torch.long))
            length += alive
            alive *= ~over
        assert not bool(alive.any())
        torch.testing.assert_close(returns, length.mean().expand(3), atol=0.15, rtol=0)

    def test_greedy_episodes_that_do_not_end_count_what_they_gained(self):
        """A simulator that goes on after the 30 steps it was said to take."""
        pytest.importorskip("gymnasium", reason="needs the extra rl")
        task = GymnasiumVector("MountainCar-v0", 60, -60.0, [1.0, 1.0])
        task.time_limit = 30
        problem, inner = self.made(task, 2, 1)
        returns, steps = greedy_return(problem, task, inner, 3, generator(0))
        assert returns.tolist() == [-30.0] * 2
        assert steps == 2 * 3 * 30

    def test_errors_of_a_model_that_never_ends(self):
        """It pays 0.5 per step for all 40 steps: the errors are 20 - return and 40 - length."""
        task = CartPole(time_limit=40)
        problem, inner = self.made(task, 2, 1)
        inner.model.params.zero_()
        problem.model._views(inner.model.params)[0][-1].bias[..., 4:] = torch.tensor([0.5, -9.0])
        latest = torch.zeros(2, 4, 6)
        latest[0, :3, 4:] = torch.tensor([[10.0, 11], [26, 43], [30, 31]])
        finished = Finished(torch.tensor([2, 0]), torch.zeros(2), latest)
        inner = inner._replace(errors=torch.full((2, 2), 7.0))
        errors = model_errors(problem, task, inner, finished, generator(1))
        assert errors.tolist() == [[(10 - 6) / 2, (29 - 3) / 2], [7, 7]]

    def test_exploration_decays_by_phase_or_over_the_given_steps(self):
        by_phase, given = Exploration(), Exploration(random=10, decay=20, last=0.5)
        assert [by_phase(t, 100) for t in (0, 99, 100, 150, 200, 900)] == pytest.approx(
            [1, 1, 1, 0.55, 0.1, 0.1]
        )
        assert [given(t, 100) for t in (9, 20, 30, 31)] == pytest.approx([1, 0.75, 0.5, 0.5])
        assert Exploration(random=5, decay=0)(5, 100) == pytest.approx(0.1)
