"""Adaptive rollout length: what an episode is, what it observes, stores and costs."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from small_runs import LIGHT, make, played, run

from metaopt.engine import Engine
from metaopt.engine.random import generator
from metaopt.environments import CartPole, GymnasiumVector, MountainCar
from metaopt.environments.q_network import QNetwork
from metaopt.environments.transitions import unpack
from metaopt.estimators import Score
from metaopt.optimizers import Linear, Schedule
from metaopt.problems.rollout_length import RolloutLength
from metaopt.problems.rollout_length.world_model import WorldModel


class TestEpisode:
    def test_rewards_add_up_to_what_was_gained(self):
        for score in ("training", "greedy"):
            problem = make(score=score, error_episodes=0)
            _, feedback = run(problem)
            observed = [f.observation for f in feedback]
            assert [s["step"] for s in observed] == [0, 1, 2, 3, 4]
            assert [s["done"] for s in observed] == [False] * 4 + [True]
            assert not bool(observed[0]["reward"].any())
            for before, after in pairwise(observed):
                torch.testing.assert_close(after["score"] - before["score"], after["reward"])
            total = torch.stack([s["reward"] for s in observed]).sum(0)
            torch.testing.assert_close(total, observed[-1]["score"] - observed[0]["score"])
            assert [float(f.value) for f in feedback] == [
                -float(s["reward"].mean()) for s in observed
            ]
            assert all(not f.done for f in feedback)

    def test_training_comes_before_the_tests(self):
        problem = make(
            LIGHT, training_episodes=2, tests=["default", "light"], runs=2, error_episodes=0
        )
        assert problem.outer_steps == 4 * 5
        engine, feedback = run(problem)
        assert [f.observation["test"] for f in feedback] == [False] * 10 + [True] * 10
        assert [problem._environment(i).gravity for i in range(6)] == [9.8, 9.8, 9.8, 1.0, 1.0, 1.0]
        assert set(engine.metrics()) == {
            f"eval/{k}{suffix}{se}"
            for k in ("return", "auc") for suffix in ("", "_light") for se in ("", "_se")
        }  # fmt: skip

    def test_metrics_are_those_of_the_tests_that_are_over(self):
        problem = make(LIGHT, tests=["default", "light"])
        engine, feedback = run(problem, steps=9)
        scores = torch.stack([f.observation["score"] for f in feedback[:5]], 1).double()
        metrics = engine.metrics()
        assert set(metrics) == {"eval/return", "eval/return_se", "eval/auc", "eval/auc_se"}
        assert metrics["eval/return"] == pytest.approx(float(scores[:, 4].mean()))
        assert metrics["eval/return_se"] == pytest.approx(float(scores[:, 4].std() / 2))
        assert metrics["eval/auc"] == pytest.approx(float(scores[:, :4].mean()))

    def test_tests_have_physics_of_their_own(self):
        """A cart that cannot be moved: every pole falls, whatever the policy."""
        task = CartPole(time_limit=60, variants={"stuck": {"force": 1e-9, "gravity": 30.0}})
        engine, _ = run(make(task, tests=["default", "stuck"], evaluation_episodes=100))
        falls = engine.inner.records.scores[1, :, -1]
        draw = generator(0)
        stuck = CartPole(force=1e-9, gravity=30.0, time_limit=60)
        episodes, lengths = stuck.begin((500,), draw, torch.float32), []
        for _ in range(60):
            episodes, moved = stuck.step(episodes, torch.zeros(500, dtype=torch.long), draw)
            lengths.append(moved.age[moved.terminated])
        lengths = torch.cat(lengths).double()
        assert float(falls.mean()) == pytest.approx(float(lengths.mean()), rel=0.05)

    def test_first_decision_starts_from_the_first_length(self):
        problem = make(first_length=3, groups=["a", "b"], planning=["synthetic", "real"])
        assert problem.init_outer(generator(0)).tolist() == [3] * 4
        _, feedback = run(problem, steps=1)
        assert feedback[0].observation["length"].tolist() == [3, 3, 0, 0]

    def test_new_runs_begin_with_each_episode(self):
        problem = make()
        engine, _ = run(problem, steps=6)
        assert (engine.inner.episode, engine.inner.step) == (1, 0)
        assert engine.inner.size.flatten().tolist() == [64] * 4
        assert engine.inner.agent.moments.steps.flatten().tolist() == [9] * 4

    def test_each_phase_costs_its_steps_and_updates(self):
        """Updates begin once a batch is there: after 32 of 64 steps, a quarter update a step.

        Each phase ends with the 15 steps of the model's fit.
        """
        problem = make()
        engine, feedback = run(problem)
        costs = [(f.cost["environment_steps"], f.cost["gradients"]) for f in feedback]
        assert costs == [(256, 4 * (9 + 15)), *[(256, 4 * (32 + 15))] * 3, (0, 4 * 16)]
        assert engine.inner.updates.tolist() == [9 + 3 * 32 + 16] * 4

    def test_models_that_stop_early_cost_the_steps_they_took(self, monkeypatch):
        """Counted where the model steps: all the runs, or those that still go on."""
        options = {"widths": (6,), "steps": 40, "evaluate_every": 2, "held_out": 5, "patience": 1}
        problem = make(error_episodes=0)
        problem.model = WorldModel(4, 2, lr=0.3, **options)
        count, step = [0], problem.model.adam.step_

        def counted(at, active=None):
            count[0] += 4 if active is None else int(active.sum())
            step(at, active)

        monkeypatch.setattr(problem.model.adam, "step_", counted)
        engine, _ = run(problem, steps=3)
        assert 3 * 4 * 2 < count[0] < 3 * 4 * 40
        updates = int(engine.inner.updates.sum())
        assert engine.ledger.spent["gradients"] == updates + count[0]

    def test_greedy_episodes_cost_steps_where_something_learns_from_them(self):
        """No car is up the hill within 40 steps: each greedy episode takes all of them."""
        task = MountainCar(time_limit=40)
        for score, each in (("training", 256), ("greedy", 256 + 4 * 2 * 40)):
            problem = make(
                task, score=score, score_episodes=2, training_episodes=1, error_episodes=0
            )
            _, feedback = run(problem, lengths=0)
            costs = [f.cost["environment_steps"] for f in feedback]
            assert costs == [*[each] * 4, 4 * 3 * 40, *[each] * 4, 0]

    def test_schedules_reach_the_runs(self):
        task = CartPole(time_limit=60, variants={"again": {}})
        problem = make(task, tests=["default", "again"])
        schedule = Schedule(Linear([[0, 8], [1, 0]], integer=True), relative=True)
        engine = Engine(problem, Score(1), schedule, outer_steps=problem.outer_steps)
        assert len(list(engine)) == 10
        for test in engine.inner.records.lengths:
            assert test.tolist() == [[8, 5, 3, 0]] * 4

    def test_a_meta_policy_observes_the_remaining_phases_the_length_and_the_errors(self):
        problem = make(clip=None)
        engine, feedback = run(problem, lengths=6)
        for step, f in enumerate(feedback):
            observed = f.observation
            state = observed["state"]
            assert state.shape == (4, 5)
            remains = 1 - min(step + 1, 4) / 4
            assert state[:, 0].tolist() == pytest.approx([remains] * 4)
            assert state[:, 1].tolist() == pytest.approx([0 if step == 0 else 6 / 8] * 4)
            torch.testing.assert_close(state[:, 2], observed["score"] / 60)
        torch.testing.assert_close(state[:, 3:], engine.inner.errors / 60)
        assert bool(engine.inner.errors.any(1).all())
        clipped, _ = run(make(clip=1e-3), lengths=6)
        observed = clipped.problem.evaluate(0, clipped.inner, 0).observation["state"]
        assert float(observed.abs().max()) <= 1e-3 + 1e-9

    def test_stored_rows_are_what_happened(self):
        """Rows chain into episodes; time-outs are not stored as ends."""
        problem = make(CartPole(time_limit=12), scaled=False)
        inner = played(problem, 0, 4)
        rows = unpack(inner.transitions[:, :256])
        flat = rows._replace(
            observation=rows.observation.view(4, 64, 4, 4),
            next_observation=rows.next_observation.view(4, 64, 4, 4),
            terminal=rows.terminal.view(4, 64, 4),
            action=rows.action.view(4, 64, 4),
        )
        after, _, ends = CartPole().advance(flat.observation, flat.action)
        torch.testing.assert_close(after, flat.next_observation)
        assert torch.equal(ends.float(), flat.terminal)
        follows = (flat.observation[:, 1:] == flat.next_observation[:, :-1]).all(-1)
        fresh = (flat.observation[:, 1:].abs() <= 0.05).all(-1)
        timed_out = ~follows & (flat.terminal[:, :-1] == 0)
        assert bool(timed_out.any())
        assert bool((follows | fresh).all())
        assert bool((~follows)[flat.terminal[:, :-1] == 1].all())

    def test_gymnasiums_resets_are_not_stored(self):
        pytest.importorskip("gymnasium", reason="needs the extra rl")
        vector = GymnasiumVector("CartPole-v1", worst=0.0)
        problem = make(vector, runs=2, evaluation_episodes=2, scaled=False)
        engine, feedback = run(problem, steps=4, lengths=3)
        inner = engine.inner
        sizes = inner.size.flatten().tolist()
        assert all(200 < n < 256 for n in sizes)
        assert engine.ledger.spent["environment_steps"] == sum(sizes)
        for i, n in enumerate(sizes):
            rows = unpack(inner.transitions[i : i + 1, :n])
            after, _, ends = CartPole().advance(rows.observation, rows.action)
            torch.testing.assert_close(after, rows.next_observation, rtol=1e-4, atol=1e-5)
            assert torch.equal(ends.float(), rows.terminal)
            assert not bool(inner.transitions[i, n:256].any())
        assert all(bool(torch.isfinite(f.observation["state"]).all()) for f in feedback)


@pytest.mark.slow
def test_planning_makes_learning_faster():
    """CartPole in 2,400 real steps: with a model, or with twice the updates, returns double."""
    problem = RolloutLength(
        CartPole(time_limit=200), partial(QNetwork, widths=(48, 32)),
        partial(WorldModel, widths=(48, 32)), runs=72, groups=["none", "real", "model"],
        planning=["synthetic", "real", "synthetic"], error_episodes=0,
    )  # fmt: skip
    lengths = torch.tensor([0, 0, 1]).repeat_interleave(24)
    inner = played(problem, lengths, problem.decisions + 1)
    none, real, model = inner.score.view(3, 24).mean(1)
    assert real > 2 * none
    assert model > 1.5 * none
